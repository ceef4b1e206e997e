//! The geometry of element-wise kernels: a thread has eight neighbours of a row.

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Rows and their width as a kernel is told: all values as one row where nothing depends on the row.
pub fn shape(rows: usize, values: usize, by_row: bool) -> (usize, usize) {
    if rows == 0 || (!by_row && u32::try_from(values).is_ok()) {
        return (usize::from(rows > 0), values);
    }
    (rows, values / rows)
}

/// Blocks for so many rows, of a thread an octet.
pub fn blocks(rows: usize, width: usize) -> usize {
    (rows * width.div_ceil(8)).div_ceil(THREADS as usize)
}
