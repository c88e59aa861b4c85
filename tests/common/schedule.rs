//! The tiles of an expert in a tile schedule, from its drawing in `kernels-gpu/src/schedule/entry.rs`.

/// Entries of the tiles of `expert`, whose rows are `first..first + rows`.
pub fn tiles(expert: usize, first: usize, rows: usize, block_m: usize) -> Vec<[u32; 4]> {
    let starts: Vec<usize> = (0..rows).step_by(block_m).collect();
    // Bands of at most 2048 rows, or of a tile if that is more, all of the same height but the last.
    let bands = rows.div_ceil(block_m.max(2048)).max(1);
    let height = starts.len().div_ceil(bands).max(1);
    let entry = |start: usize, band: &[usize], number: usize| {
        let tile_rows = block_m.min(rows - start);
        let band_rows = (band.len() * block_m).min(rows - band[0]).min(0xffff);
        [expert as u32, (first + start) as u32, tile_rows as u32, ((band_rows << 16) + number) as u32]
    };
    starts
        .chunks(height)
        .flat_map(|band| band.iter().enumerate().map(move |(number, &start)| entry(start, band, number)))
        .collect()
}
