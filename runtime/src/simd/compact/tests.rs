//! Every number that 16 bits can be comes back, and products have the bits of those with the numbers as they were.

use super::*;

/// A line's numbers from its bytes, one by one as the module's equations have it.
fn read<T: Half>(bytes: &[u8], count: usize) -> Vec<u16> {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (base, mut exception) = (word(0), fields_end::<T>(count));
    let bit = |at: usize| u16::from(bytes[BASE_BYTES + at / 8] >> (at % 8) & 1);
    let mut numbers = Vec::new();
    for first in (0..count).step_by(BLOCK) {
        let mut block = [0; BLOCK];
        for (index, number) in block.iter_mut().enumerate() {
            let at = (first + index) * T::FIELD;
            let field = (0..T::FIELD).fold(0, |field, place| field | bit(at + place) << place);
            let (rest, sign) = (field & !(1 << (T::FIELD - 1)), field >> (T::FIELD - 1));
            if rest >> T::FRACTION == 0 {
                *number = word(exception);
                exception += size_of::<u16>();
            } else {
                *number = rest.wrapping_add(base) | sign << 15;
            }
        }
        let places: [u16; BLOCK] = std::array::from_fn(|index| index as u16);
        let mut ordered = [0; BLOCK];
        for (number, place) in block.into_iter().zip(T::arrange(&places)) {
            ordered[usize::from(place)] = number;
        }
        numbers.extend(ordered);
    }
    assert_eq!(exception, bytes.len(), "as many exceptions as codes that say so");
    numbers
}

fn write<T: Half>(simd: &Simd, line: &[T]) -> Vec<u8> {
    let code = LineCode::of(line);
    let mut bytes = vec![0xff; code.bytes];
    code.write(simd, line, &mut bytes);
    bytes
}

/// Deterministic bits.
fn bits(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 20
    }
}

/// Numbers about as normal deviates are spread.
fn deviates<T: Half>(count: usize, seed: u64, of: impl Fn(f32) -> T) -> Vec<T> {
    let mut bits = bits(seed);
    let mut uniform = || bits() as f32 / (1u64 << 44) as f32 - 0.5;
    (0..count).map(|_| of(0.04 * (0..6).map(|_| uniform()).sum::<f32>())).collect()
}

/// Lines that are hard in one way or another, of whole groups.
fn hard<T: Half>(of: impl Fn(f32) -> T) -> Vec<Vec<T>> {
    let mut lines = vec![
        deviates(GROUP, 1, &of),
        deviates(12 * GROUP, 2, &of),
        vec![of(0.0); GROUP],
        vec![of(-0.0); 2 * GROUP],
        vec![of(-3.5); GROUP],
        (0..3 * GROUP).map(|index| of(if index % 5 == 0 { 0.01 } else { 0.0 })).collect(),
        (0..2 * GROUP).map(|index| of(2f32.powi(index as i32 % 16 - 12))).collect(),
    ];
    let mut bits = bits(3);
    lines.push(
        (0..4 * GROUP).map(|_| of(f32::from_bits((bits() as u32 % (24 << 23)) + (104 << 23)))).collect(),
    );
    lines
}

fn every_number_comes_back<T: Half>(of: impl Fn(f32) -> T) {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let mut lines = hard(of);
    lines.extend(T::from_bits(&all).chunks(1 << 13).map(<[T]>::to_vec));
    let mut bits = bits(4);
    let shuffled: Vec<u16> = (0..1 << 13).map(|_| bits() as u16).collect();
    lines.push(T::from_bits(&shuffled).to_vec());
    for simd in Simd::available() {
        for line in &lines {
            assert_eq!(read::<T>(&write(simd, line), line.len()), T::bits(line), "{}", simd.name);
        }
    }
}

#[test]
fn every_number_comes_back_from_fewer_bits() {
    every_number_comes_back(f16::from_f32);
    every_number_comes_back(bf16::from_f32);
}

#[test]
fn no_base_leaves_fewer_exceptions() {
    fn check<T: Half>(of: impl Fn(f32) -> T) {
        for line in hard(of) {
            let coded = |base: i32| {
                let codes = base + 1..=base + CODES as i32;
                T::bits(&line).iter().filter(|bits| codes.contains(&(exponent::<T>(**bits) as i32))).count()
            };
            let best = (-1..T::EXPONENTS as i32).map(coded).max().expect("bases");
            let exceptions = (LineCode::of(&line).bytes - fields_end::<T>(line.len())) / size_of::<u16>();
            assert_eq!(exceptions, line.len() - best);
        }
    }
    check(f16::from_f32);
    check(bf16::from_f32);
    assert_eq!(
        LineCode::of(&[f16::ZERO; GROUP]).bytes,
        BASE_BYTES + GROUP * 14 / 8,
        "zeros are no exceptions"
    );
}

#[test]
fn a_line_that_changes_while_it_is_written_ends_no_process() {
    let simd = Simd::best();
    let mut random = bits(6);
    let wild: Vec<u16> = (0..4 * GROUP).map(|_| random() as u16).collect();
    for (made_for, written) in [(&[0; 4 * GROUP][..], &wild[..]), (&wild, &[0; 4 * GROUP])] {
        let code = LineCode::of(<bf16 as Half>::from_bits(made_for));
        code.write(simd, <bf16 as Half>::from_bits(written), &mut vec![0; code.bytes]);
    }
}

#[test]
fn deviates_take_nine_tenths_and_seven_tenths() {
    let taken = |bytes: usize, count: usize| bytes as f64 / (2 * count) as f64;
    let (half, brain) = (deviates(1 << 16, 5, f16::from_f32), deviates(1 << 16, 5, bf16::from_f32));
    let (half, brain) = (LineCode::of(&half).bytes, LineCode::of(&brain).bytes);
    assert!((0.875..0.91).contains(&taken(half, 1 << 16)), "{half} bytes");
    assert!((0.6875..0.725).contains(&taken(brain, 1 << 16)), "{brain} bytes");
}

/// Lines one after the other, padded.
fn matrix<T: Half>(simd: &Simd, lines: &[Vec<T>]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for line in lines {
        starts.push(bytes.len());
        bytes.extend(write(simd, line));
    }
    bytes.resize(bytes.len() + padding(lines[0].len()), 0xff);
    (bytes, starts)
}

/// What the table's product with rows as they are is.
type GemvRows<T> = fn(&[T], usize, Origin, &[f32], &mut [f32]);

fn products_have_the_same_bits<T: Half>(of: impl Fn(f32) -> T, gemv_rows: impl Fn(&Simd) -> GemvRows<T>) {
    let mut tried = 0;
    for simd in Simd::available() {
        let Some(products) = simd.compact_products::<T>() else { continue };
        tried += 1;
        for (columns, count) in [(GROUP, 1), (GROUP, 9), (3 * GROUP, 7), (12 * GROUP, 5)] {
            let mut lines: Vec<Vec<T>> =
                (0..count).map(|line| deviates(columns, 7 + line as u64, &of)).collect();
            for hard in hard(&of).into_iter().filter(|hard| hard.len() == columns) {
                lines.push(hard);
            }
            let stored = lines.concat();
            let (bytes, starts) = matrix(simd, &lines);
            let x: Vec<f32> = (0..columns.max(lines.len())).map(|index| (index as f32 * 0.7).sin()).collect();
            let (mut want, mut got) = (vec![f32::NAN; lines.len()], vec![f32::NAN; lines.len()]);
            T::gemv(simd)(&stored, Origin::Memory, &x[..columns], &mut want);
            (products.gemv)(&bytes, &starts, &x[..columns], &mut got);
            assert_eq!(got, want, "{columns} columns");
            let (mut want, mut got) = (vec![f32::NAN; columns], vec![f32::NAN; columns]);
            gemv_rows(simd)(&stored, columns, Origin::Memory, &x[..lines.len()], &mut want);
            (products.gemv_rows)(&bytes, &starts, &x[..lines.len()], &mut got);
            assert_eq!(got, want, "{columns} columns, line by line");
        }
    }
    if tried == 0 {
        eprintln!("skipped: this processor has no AVX-512 VBMI, or LECTERN_SIMD has nothing to do with it");
    }
}

#[test]
fn products_with_fewer_bits_have_the_same_bits() {
    products_have_the_same_bits(f16::from_f32, |simd| simd.gemv_rows_f16);
    products_have_the_same_bits(bf16::from_f32, |simd| simd.gemv_rows_bf16);
}

#[test]
fn a_line_that_does_not_lie_within_its_bytes_is_refused() {
    for simd in Simd::available() {
        let Some(products) = simd.compact_products::<bf16>() else { continue };
        let (bytes, starts) = matrix(simd, &[deviates(GROUP, 1, bf16::from_f32)]);
        let x = [1.0; GROUP];
        let all = |bytes: &[u8], start: usize| {
            let run = |product: CompactGemv, x: &[f32], mut y: Vec<f32>| {
                std::panic::catch_unwind(move || product(bytes, &[start], x, &mut y)).is_err()
            };
            [run(products.gemv, &x, vec![0.0]), run(products.gemv_rows, &x[..1], vec![0.0; GROUP])]
        };
        assert_eq!(all(&bytes, starts[0]), [false; 2]);
        // Whatever the bytes are, even all exceptions.
        assert_eq!(all(&vec![0; fields_end::<bf16>(GROUP) + padding(GROUP)], 0), [false; 2]);
        for (bytes, start) in
            [(&bytes[..], bytes.len()), (&bytes[..BASE_BYTES], 0), (&[], 0), (&bytes, usize::MAX)]
        {
            assert_eq!(all(bytes, start), [true; 2], "{} bytes from {start}", bytes.len());
        }
    }
}
