//! Splits, orders and windows against plain lists of what they should be.

use super::super::shard::tests::{Scratch, write};
use super::super::{Data, Request};
use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Documents of distinct lengths; their ids tell the document they are of.
fn documents(count: u32) -> Vec<Vec<u32>> {
    (0..count).map(|document| vec![document % 256; 1 + (document * 7 % 23) as usize]).collect()
}

fn open(paths: &[&Path], weights: &[f64], held_out: f64, block: usize) -> Result<Corpus> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let request = Request { paths: &paths, weights, held_out, block };
    match Data::open(&request, Some(Tokenizer::bytes()))?.1 {
        Data::Corpus(corpus) => Ok(corpus),
        Data::Text(_) => panic!("a corpus is asked for"),
    }
}

/// Every window of a side, in the order of its numbers.
fn windows(corpus: &Corpus, side: Side) -> Vec<(Vec<u32>, Vec<u32>)> {
    let read = |window| {
        let mut batch = Batch::default();
        corpus.read(side, window, &mut batch).expect("a window");
        (batch.inputs, batch.targets)
    };
    (0..corpus.windows(side)).map(read).collect()
}

#[test]
fn windows_tile_the_documents_of_their_side_and_no_others() {
    let scratch = Scratch::new("tiles");
    for count in [2, 30, 255, 256, 257, 1000] {
        let documents = documents(count);
        write(&scratch.0, &documents);
        for (held_out, block) in [(0.1, 1), (0.1, 8), (0.5, 5), (0.3, 64)] {
            let expected = Side::ALL.map(|wanted| {
                let own = (0..).zip(&documents).filter(|(number, _)| side(*number, held_out) == wanted);
                own.flat_map(|(_, document)| document.clone()).collect::<Vec<u32>>()
            });
            let found = match open(&[&scratch.0], &[], held_out, block) {
                Ok(corpus) if corpus.told().all(|told| told.by_document) => corpus,
                _ => {
                    assert!(count <= 30, "{count} documents are enough for {held_out} and {block}");
                    continue;
                }
            };
            for (wanted, expected) in Side::ALL.into_iter().zip(expected) {
                assert_eq!(found.tokens(wanted), expected.len() as u64);
                let windows = windows(&found, wanted);
                assert_eq!(windows.len(), (expected.len() - 1) / block);
                for (number, (inputs, targets)) in windows.iter().enumerate() {
                    let at = number * block;
                    assert_eq!(inputs[..], expected[at..at + block], "window {number}");
                    assert_eq!(targets[..], expected[at + 1..at + block + 1], "window {number}");
                }
            }
        }
    }
}

#[test]
fn a_tenth_of_the_documents_is_held_out_whatever_the_seed() {
    let held = (0..100_000).filter(|&document| side(document, 0.1) == Side::Validation).count();
    // Binomial: the deviation is 95.
    assert!((9600..10_400).contains(&held), "{held}");
    assert!((0..1000).all(|document| side(document, 0.0) == Side::Training));
    // What a smaller part holds out, a larger one does too.
    let of =
        |part: f64| (0..1000).filter(move |&d| side(d, part) == Side::Validation).collect::<BTreeSet<_>>();
    assert!(of(0.1).is_subset(&of(0.2)));
}

#[test]
fn an_epoch_visits_every_window_once_and_the_next_in_another_order() {
    let (first, second) = (Scratch::new("epoch-1"), Scratch::new("epoch-2"));
    write(&first.0, &documents(400));
    write(&second.0, &documents(150));
    let corpus = open(&[&first.0, &second.0], &[], 0.1, 8).expect("a corpus");
    let count = corpus.windows(Side::Training);
    assert!(count > 500);
    let epoch = |seed: u64, epoch: u64| -> Vec<u64> {
        (epoch * count..(epoch + 1) * count).map(|sequence| corpus.training(seed, sequence)).collect()
    };
    let orders = [epoch(1, 0), epoch(1, 1), epoch(2, 0)];
    for order in &orders {
        let seen: BTreeSet<u64> = order.iter().copied().collect();
        assert_eq!((seen.len() as u64, seen.last().copied()), (count, Some(count - 1)));
    }
    assert!(orders[0] != orders[1] && orders[0] != orders[2]);
    assert_ne!(orders[0], (0..count).collect::<Vec<u64>>());
}

#[test]
fn weights_are_honoured_and_each_file_has_its_own_epochs() {
    let (first, second) = (Scratch::new("weights-1"), Scratch::new("weights-2"));
    write(&first.0, &documents(300));
    write(&second.0, &documents(60));
    let corpus = open(&[&first.0, &second.0], &[1.0, 3.0], 0.1, 4).expect("a corpus");
    let border = corpus.windows[0][1];
    let (mut seen, mut late) = (BTreeMap::<u64, u64>::new(), 0u64);
    for sequence in 0..20_000 {
        let window = corpus.training(9, sequence);
        *seen.entry(window).or_default() += 1;
        late += u64::from(window >= border);
        assert!((late as f64 - 0.75 * (sequence + 1) as f64).abs() < 1.0);
    }
    for file in [0..border, border..corpus.windows(Side::Training)] {
        let counts: BTreeSet<u64> = file.map(|window| seen.get(&window).copied().unwrap_or(0)).collect();
        let (least, most) = (counts.first().expect("some"), counts.last().expect("some"));
        assert!(most - least <= 1, "{counts:?}");
    }
    // One file without a window for its weight is refused by name.
    let short = Scratch::new("weights-short");
    write(&short.0, &[vec![1], vec![2]]);
    let error = open(&[&first.0, &short.0], &[1.0, 1.0], 0.1, 4).expect_err("too short");
    assert!(error.to_string().contains("weights-short") && error.exit_code() == 3, "{error}");
    assert_eq!(open(&[&first.0], &[1.0, 1.0], 0.1, 4).expect_err("two for one").exit_code(), 2);
}

#[test]
fn a_batch_is_a_function_of_seed_and_step() {
    use crate::random::{Generator, RngKind};
    let scratch = Scratch::new("batch");
    write(&scratch.0, &documents(300));
    let data = Data::Corpus(open(&[&scratch.0], &[], 0.1, 8).expect("a corpus"));
    let mut generator = Generator::new(RngKind::Counter, 3);
    let mut of = |seed, step, sequences| {
        let mut batch = Batch::default();
        data.training(&mut generator, seed, step, (sequences, 8), &mut batch).expect("a batch");
        (batch.inputs, batch.targets)
    };
    assert_eq!(of(3, 17, 4), of(3, 17, 4));
    assert_ne!(of(3, 17, 4), of(3, 18, 4));
    assert_ne!(of(3, 17, 4), of(4, 17, 4));
    // Two batches of two are one of four: accumulated gradients are of the same windows.
    let (first, second, both) = (of(3, 34, 2), of(3, 35, 2), of(3, 17, 4));
    assert_eq!([first.0, second.0].concat(), both.0);
}

#[test]
fn evaluations_read_their_side_in_another_order_each_time() {
    let scratch = Scratch::new("evaluation");
    write(&scratch.0, &documents(500));
    let corpus = open(&[&scratch.0], &[], 0.2, 4).expect("a corpus");
    for side in Side::ALL {
        let count = corpus.windows(side);
        let of = |step| (0..count).map(|k| corpus.evaluation(1, step, side, k)).collect::<Vec<u64>>();
        assert_eq!(of(100).iter().collect::<BTreeSet<_>>().len() as u64, count);
        assert!(of(100) != of(200) && of(100) == of(100));
        assert!(of(100).iter().all(|window| *window < count));
    }
}

#[test]
fn one_document_is_cut_and_texts_mix_with_shards() {
    let (shard, text) = (Scratch::new("one"), Scratch::new("text"));
    write(&shard.0, &[(0..100).collect()]);
    std::fs::write(&text.0, (100..200).map(|byte: u8| byte).collect::<Vec<u8>>()).expect("can be written");
    let corpus = open(&[&shard.0, &text.0], &[], 0.1, 3).expect("a corpus");
    assert_eq!((corpus.tokens(Side::Training), corpus.tokens(Side::Validation)), (180, 20));
    assert!(corpus.told().all(|told| !told.by_document));
    let last = |side| windows(&corpus, side).pop().expect("one").1.pop().expect("an id");
    assert_eq!((last(Side::Training), last(Side::Validation)), (187, 199));
    let notes = Data::Corpus(corpus).notes();
    assert!(notes.len() == 2 && notes[0].contains("not split by document"), "{notes:?}");
}

#[test]
fn what_has_no_window_and_what_has_another_tokenizer_is_refused() {
    let scratch = Scratch::new("refused");
    write(&scratch.0, &documents(100));
    assert_eq!(open(&[&scratch.0], &[], 0.1, 5000).expect_err("too little").exit_code(), 3);
    let error = open(&[&scratch.0], &[], 0.0, 4).expect_err("nothing held out").to_string();
    assert!(error.contains("--held-out"), "{error}");
    let paths = [scratch.0.clone()];
    let request = Request { paths: &paths, weights: &[], held_out: 0.1, block: 4 };
    let other = Tokenizer::characters("abc").expect("not empty");
    let error = Data::open(&request, Some(other)).expect_err("another tokenizer");
    assert!(error.exit_code() == 3 && error.to_string().contains("another tokenizer"), "{error}");
    let error = Data::open(&request, None).expect_err("characters").to_string();
    assert!(error.contains("--tokenizer"), "{error}");
}

#[test]
fn a_changed_shard_has_another_fingerprint() {
    let scratch = Scratch::new("fingerprint");
    let of = |documents: &[Vec<u32>]| {
        write(&scratch.0, documents);
        open(&[&scratch.0], &[], 0.1, 4).expect("a corpus").fingerprint().clone()
    };
    let mut changed = documents(100);
    let before = of(&changed);
    assert_eq!(before, of(&changed));
    changed[50][0] ^= 1;
    assert_ne!(before, of(&changed));
}
