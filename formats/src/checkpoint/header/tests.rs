//! What a header may say, and what it is told when it says something else.

use super::*;
use crate::checkpoint::container::TensorFile;
use std::sync::Arc;

/// A file of `header` and `data` bytes of zeros.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// `header` padded so that the data begin at a multiple of 8.
fn padded(header: &str) -> String {
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    header
}

fn open(bytes: &[u8]) -> Result<TensorFile> {
    TensorFile::from_bytes(Arc::from(bytes), Path::new("model.safetensors"))
}

fn refused(header: &str, data: usize, words: &str) {
    let error = open(&file(&padded(header), data)).expect_err(header);
    assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    assert_eq!(error.exit_code(), 3);
}

fn accepted(header: &str, data: usize) -> TensorFile {
    open(&file(&padded(header), data)).expect(header)
}

#[test]
fn a_plain_file_is_read_in_any_order() {
    let header = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},"__metadata__":{"format":"pt","x":""},
        "a":{"data_offsets":[0,8],"shape":[1,2],"dtype":"F32"},"c.d_e-9":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}"#;
    let file = accepted(header, 14);
    let names: Vec<_> = file.iter().map(|tensor| (tensor.name, tensor.values.dtype())).collect();
    assert_eq!(names, [("a", Dtype::F32), ("b", Dtype::F16), ("c.d_e-9", Dtype::Bf16)]);
    assert_eq!(file.get("a").expect("is there").shape, [1, 2]);
    assert_eq!(file.get("c.d_e-9").expect("a scalar").values.len(), 1);
    assert!(file.get("d").is_none());
    assert!(accepted("{}", 0).is_empty());
}

#[test]
fn the_length_of_the_header_is_believed_only_within_the_file() {
    for len in 0..8 {
        let message = open(&vec![0; len]).expect_err("too short").to_string();
        assert!(message.contains(&format!("has {len} bytes")), "{message}");
    }
    let whole = file(&padded("{}"), 0);
    for length in [0, 1, 2, 7, 9, 1 << 24, (1 << 24) + 1, 1 << 63, u64::MAX, u64::MAX - 7] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(open(&bytes).is_err(), "{length}");
    }
    for place in 0..8 {
        for value in 0..=255 {
            let mut bytes = whole.clone();
            bytes[place] = value;
            assert_eq!(open(&bytes).is_ok(), bytes == whole, "byte {place} is {value}");
        }
    }
}

#[test]
fn the_longest_header_is_bounded_on_both_sides() {
    let most = MOST_HEADER as usize;
    let header = |len: usize| format!("{{{}}}", " ".repeat(len - 2));
    assert!(open(&file(&header(most), 0)).is_ok());
    assert!(open(&file(&header(most + 8), 0)).is_err());
}

#[test]
fn json_tricks_are_refused() {
    let good = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    accepted(&format!("{{{good}}}"), 4);
    let same = good.replace("\"a\"", "\"\\u0061\"");
    refused(&format!("{{{good},{good}}}"), 4, "\"a\" stands twice");
    refused(&format!("{{{good},{same}}}"), 4, "\"a\" stands twice");
    refused(&format!("{{{}}}", good.replace("[1]", "[1],\"shape\":[1]")), 4, "duplicate field");
    refused(&format!("{{{}}}", good.replace("[1]", "[1],\"extra\":1")), 4, "unknown field `extra`");
    refused(&format!("{{{}}}", good.replace("\"shape\":[1],", "")), 4, "missing field `shape`");
    for number in ["1e0", "1.0", "-1", "-0", "01", "+1", "18446744073709551616", "\"1\"", "null", "0x1"] {
        refused(&format!("{{{}}}", good.replace("[1]", &format!("[{number}]"))), 4, "header is invalid");
    }
    refused(r#"{"a":["F32",[1],[0,4]]}"#, 4, "header is invalid");
    for offsets in ["[0]", "[0,4,4]", "[]", "{}", "4"] {
        refused(&format!("{{{}}}", good.replace("[0,4]", offsets)), 4, "header is invalid");
    }
    refused(&format!("{{{good},}}"), 4, "header is invalid");
    refused(&format!("{{{good}}} {{}}"), 4, "header is invalid");
    refused(&format!(" {{{good}}}"), 4, "not a JSON object");
    refused(&format!("\u{feff}{{{good}}}"), 4, "not a JSON object");
    refused(&format!("[{good}]"), 4, "not a JSON object");
    refused(&format!("{{\"a\":{}}}", "[".repeat(100_000)), 4, "header is invalid");
    refused(&format!("{{\"__metadata__\":1,{good}}}"), 4, "header is invalid");
    refused(&format!("{{\"__metadata__\":{{\"a\":1}},{good}}}"), 4, "header is invalid");
    for name in ["", "a b", "../a", "a/b", "a\\u0000", "a\\n", "\u{e9}", &"a".repeat(MOST_NAME + 1)] {
        refused(&format!("{{{}}}", good.replace("\"a\"", &format!("\"{name}\""))), 4, "no tensor name");
    }
    accepted(&format!("{{{}}}", good.replace("\"a\"", &format!("\"{}\"", "a".repeat(MOST_NAME)))), 4);
    let mut not_text = file(&padded(&format!("{{{good}}}")), 4);
    not_text[10] = 0xFF;
    assert!(open(&not_text).is_err());
}

#[test]
fn offsets_must_tile_the_data() {
    let two = |first: &str, second: &str| {
        let tensor = |offsets| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, tensor(first), tensor(second))
    };
    accepted(&two("[0,8]", "[8,16]"), 16);
    accepted(&two("[8,16]", "[0,8]"), 16);
    refused(&two("[0,8]", "[0,8]"), 16, "expected 8");
    refused(&two("[0,8]", "[4,12]"), 16, "expected 8");
    refused(&two("[0,8]", "[8,16]"), 24, "take 16 bytes, and 24 follow");
    refused(&two("[4,12]", "[12,20]"), 20, "take 16 bytes, and 20 follow");
    refused(&two("[0,8]", "[0,8]"), 8, "take 16 bytes, and 8 follow");
    refused(&two("[0,8]", "[16,8]"), 16, "lies at bytes 16 to 8");
    refused(&two("[0,8]", "[8,17]"), 17, "needs 8 bytes, and has 9");
    refused(&two("[0,8]", "[12,20]"), 16, "lies at bytes 12 to 20 of 16");
    refused(&two("[0,8]", "[18446744073709551608,0]"), 16, "lies at bytes");
    refused("{}", 8, "take 0 bytes, and 8 follow");
}

#[test]
fn shapes_cannot_wrap_to_the_right_size() {
    let tensor = |shape: &str, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    // The product is 4 modulo 2^64.
    refused(&tensor("[4194305,4194305,211106198978564]", 16), 16, "does not fit the file");
    refused(&tensor("[4294967296,4294967296]", 0), 0, "does not fit the file");
    let huge = u64::MAX;
    refused(&tensor(&format!("[{huge},{huge},{huge},{huge}]"), 4), 4, "does not fit the file");
    refused(&tensor("[0,9223372036854775808,9223372036854775808]", 0), 0, "no dimension may be 0");
    refused(&tensor("[9223372036854775808,4,0]", 0), 0, "no dimension may be 0");
    refused(&tensor("[1,1,1,1,1]", 4), 4, "has 5 dimensions");
    accepted(&tensor("[1,1,1,1]", 4), 4);
}

#[test]
fn sizes_cannot_wrap_in_the_sum() {
    let each = 8 * ((1u64 << 61) - 1) + 7;
    let tensors: Vec<String> = (0..9)
        .map(|i: u64| {
            let begin = each.wrapping_mul(i);
            let end = begin.wrapping_add(each);
            format!(r#""t{i}":{{"dtype":"F16","shape":[{each}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    refused(&format!("{{{}}}", tensors.join(",")), 0, "does not fit the file");
}

#[test]
fn only_three_types_are_read() {
    for dtype in ["F64", "I64", "U8", "BOOL", "F4", "F8_E4M3", "f32", "F128", ""] {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,32]}}}}"#);
        refused(&header, 32, &format!("is of type {dtype:?}"));
    }
}

#[test]
fn what_is_passed_over_may_be_of_any_type_and_must_lie_right() {
    let header = |dtype: &str, size: usize| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"m":{{"dtype":"{dtype}","shape":[2],"data_offsets":[8,{}]}}}}"#,
            8 + size
        )
    };
    let passing = |text: &str, data: usize| {
        let bytes = Arc::from(file(&padded(text), data));
        TensorFile::from_bytes_passing(bytes, Path::new("memory"), &|name| name == "m")
    };
    for (dtype, size) in [("BOOL", 2), ("U8", 2), ("I64", 16), ("F32", 8)] {
        let opened = passing(&header(dtype, size), 8 + size).expect("passed over");
        assert_eq!((opened.len(), opened.get("m").is_none()), (1, true));
        assert!(passing(&header(dtype, size + 1), 9 + size).is_err(), "{dtype}");
    }
    assert!(passing(&header("F4", 2), 10).is_err());
    refused(&header("BOOL", 2), 10, "tensor m is of type \"BOOL\"");
}

#[test]
fn numbers_must_be_aligned_in_the_file() {
    let header = |dtype: &str, size: usize| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{size}]}}}}"#)
    };
    for (dtype, size) in [("F32", 4), ("F16", 2), ("BF16", 2)] {
        for spaces in 0..64 {
            let header = header(dtype, size) + &" ".repeat(spaces);
            let opened = open(&file(&header, size));
            assert_eq!(opened.is_ok(), (8 + header.len()).is_multiple_of(size), "{header:?}");
        }
    }
}

#[test]
fn other_formats_are_named() {
    let cases: [(&[u8], &str); 7] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n <html lang='en'>", "an HTML page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "a gzip archive"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "a zip archive"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", "a Python pickle"),
        (b"GGUF\x03\0\0\0\x24\0\0\0", "a GGUF file"),
    ];
    for (bytes, words) in cases {
        let message = open(bytes).expect_err(words).to_string();
        assert!(message.contains(&format!("is {words}")), "{message}");
    }
}

#[test]
fn a_hostile_header_of_full_size_is_refused_quickly() {
    let start = std::time::Instant::now();
    let entry = |i: usize| format!(r#""t{i}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
    let many: Vec<String> = (0..=MOST_TENSORS).map(entry).collect();
    refused(&format!("{{{}}}", many.join(",")), 4, "more than 131072 tensors");
    let shape = vec!["1"; 4 << 20].join(",");
    refused(&format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#), 4, "dimensions");
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
}
