//! Matrices that a checkpoint has the other way round.
//!
//! ```text
//!   [rows, columns] --squares of 64 x 64 bytes, a cache line a row--> turned in registers --> [columns, rows]
//! ```

use crate::fp8::E4m3;

/// Writes the transposed matrix `[columns, rows]` of `rows` by `columns` elements, whose rows begin `stride`
/// apart and whose columns `step`, 1 or 2, to `to`.
///
/// Squares of whole cache lines go through a copy of their own: where rows are a power of two apart, all
/// lines of a column have the same few places in a cache, and would push each other out at every byte.
pub(super) fn transpose(
    bytes: &[u8],
    [stride, step]: [usize; 2],
    [rows, columns]: [usize; 2],
    to: &mut [E4m3],
) {
    let to: &mut [u8] = bytemuck::cast_slice_mut(to);
    let mut square = [[0; SIDE]; SIDE];
    for top in (0..rows).step_by(SIDE) {
        let high = SIDE.min(rows - top);
        for left in (0..columns).step_by(SIDE) {
            let wide = SIDE.min(columns - left);
            for (line, row) in square.iter_mut().zip(top..top + high) {
                let from = &bytes[row * stride + left * step..];
                if step == 1 {
                    line[..wide].copy_from_slice(&from[..wide]);
                } else {
                    // The last of a tensor has no other byte behind it.
                    let pairs = from[..2 * (wide - 1)].as_chunks::<2>().0;
                    line.iter_mut().zip(pairs).for_each(|(to, [first, _])| *to = *first);
                    line[wide - 1] = from[2 * (wide - 1)];
                }
            }
            let turned = turn(&square);
            for (line, column) in turned.iter().zip(left..left + wide) {
                let start = column * rows + top;
                to[start..start + high].copy_from_slice(&line[..high]);
            }
        }
    }
}

/// Side of the squares, in bytes: a cache line.
const SIDE: usize = 64;

/// The transposed square, eight by eight bytes at a time.
fn turn(square: &[[u8; SIDE]; SIDE]) -> [[u8; SIDE]; SIDE] {
    let mut turned = [[0; SIDE]; SIDE];
    for top in (0..SIDE).step_by(8) {
        for left in (0..SIDE).step_by(8) {
            let word = |row: usize| {
                let bytes = square[top + row][left..].first_chunk().expect("eight bytes");
                u64::from_le_bytes(*bytes)
            };
            let words = turn_words(std::array::from_fn(word));
            for (row, word) in words.into_iter().enumerate() {
                turned[left + row][top..top + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    turned
}

/// Byte j of word i as byte i of word j: exchanges the halves of pairs of words, of four bytes, of two, of
/// one.
fn turn_words(mut words: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in
        [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff)]
    {
        for first in (0..8).filter(|word| word & distance == 0) {
            let differs = (words[first] >> (8 * distance) ^ words[first + distance]) & mask;
            words[first + distance] ^= differs;
            words[first] ^= differs << (8 * distance);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        for (rows, columns, step) in
            [(70, 130, 1), (70, 65, 2), (64, 64, 1), (1, 3, 2), (129, 1, 2), (16, 48, 1)]
        {
            let stride = columns * step;
            // Of the last row nothing is there but what is read.
            let len = rows * stride - (step - 1);
            let bytes: Vec<u8> = (0..len).map(|i| (i * i % 251) as u8).collect();
            let mut out = vec![E4m3::default(); rows * columns];
            transpose(&bytes, [stride, step], [rows, columns], &mut out);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(out[column * rows + row].0, bytes[row * stride + column * step]);
                }
            }
        }
    }
}
