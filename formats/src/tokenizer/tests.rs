use super::*;

#[test]
fn characters_are_the_sorted_set_of_the_text() {
    let tokenizer = Tokenizer::characters("hello\n wörld").expect("not empty");
    assert_eq!(tokenizer.vocabulary(), 10);
    assert_eq!(tokenizer.token(0), Some(&b"\n"[..]));
    assert_eq!(tokenizer.token(9), Some("ö".as_bytes()));
    assert_eq!(tokenizer.token(10), None);
    assert_eq!(tokenizer.encode("\n hö").expect("known"), [0, 1, 4, 9]);
    assert_eq!(tokenizer.decode(&[9, 4, 1, 0]).expect("known"), "öh \n".as_bytes());
}

#[test]
fn an_unknown_character_is_named_with_its_place() {
    let tokenizer = Tokenizer::characters("aé").expect("not empty");
    let message = tokenizer.encode("éa日").expect_err("unknown").to_string();
    assert!(message.contains("'日' (U+65E5) at byte 3"), "{message}");
    let message = tokenizer.decode(&[0, 2]).expect_err("outside").to_string();
    assert!(message.contains("id 2 at position 1"), "{message}");
    assert!(Tokenizer::bytes().decode(&[u32::MAX]).is_err());
}

#[test]
fn an_empty_text_has_no_vocabulary() {
    assert_eq!(Tokenizer::characters("").expect_err("empty").exit_code(), 2);
}
