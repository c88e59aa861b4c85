//! Operands: random ones, and ones that are made to tell models apart.

use super::model::Type;

/// The operands of one product, as [`super::kernels`] lays them out.
#[derive(Clone)]
pub struct Tile {
    /// 64 rows of up to 32 elements.
    pub a: Vec<Vec<u32>>,
    /// 8 columns likewise.
    pub b: Vec<Vec<u32>>,
    /// 64 x 8.
    pub c: Vec<[f32; 8]>,
}

/// A small generator of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From `low` to `high`, both included.
    fn within(&mut self, low: i32, high: i32) -> i32 {
        low + (self.next() % (high - low + 1) as u64) as i32
    }

    fn coin(&mut self) -> bool {
        self.next() >> 63 != 0
    }

    /// An f32 of this exponent with random sign and mantissa.
    fn float(&mut self, exponent: i32) -> f32 {
        let bits = self.next() as u32;
        f32::from_bits(bits & 0x807f_ffff | ((exponent.clamp(-126, 126) + 127) as u32) << 23)
    }
}

/// The elements of a product of two types along K.
fn elements(types: (Type, Type)) -> usize {
    32 / types.0.bytes()
}

/// Operands whose exponents lie within `spread` of each other, some of them zero, and accumulators around the
/// products.
fn random(r: &mut Random, (ta, tb): (Type, Type), spread: i32, zeros: i32, with_c: bool) -> Tile {
    let k = elements((ta, tb));
    let mut tops = (Vec::new(), Vec::new());
    let mut lines = |ty: Type, count: usize, tops: &mut Vec<i32>| -> Vec<Vec<u32>> {
        let (least, most) = ty.range();
        // bf16 alone could leave the range of an f32.
        let (least, most) = ((least - ty.layout().1 as i32).max(-40), most.min(40));
        let mut line = || {
            let top = r.within((least + spread).min(most), most);
            tops.push(top);
            (0..k)
                .map(|_| {
                    let exponent = r.within((top - spread).max(least), top);
                    let mantissa = r.next() as u32 & ((1 << ty.layout().1) - 1);
                    if r.within(0, 9) < zeros { 0 } else { ty.encode(r.coin(), exponent, mantissa) }
                })
                .collect()
        };
        (0..count).map(|_| line()).collect()
    };
    let a = lines(ta, 64, &mut tops.0);
    let b = lines(tb, 8, &mut tops.1);
    let c = (0..64)
        .map(|row| {
            std::array::from_fn(|column| {
                let around = tops.0[row] + tops.1[column];
                if with_c {
                    let by = r.within(-30, 8);
                    r.float(around + by)
                } else {
                    0.0
                }
            })
        })
        .collect();
    Tile { a, b, c }
}

/// One product at the top and one some bits below it: how many bits are kept, and how they are cut.
fn two_products(r: &mut Random, (ta, tb): (Type, Type), at: usize, full: bool, with_c: bool) -> Tile {
    let k = elements((ta, tb));
    let at = at.min(k - 1);
    let mantissa =
        |r: &mut Random, ty: Type| if full { r.next() as u32 & ((1 << ty.layout().1) - 1) } else { 0 };
    let top = ta.range().1.min(8);
    let a = (0..64)
        .map(|row| {
            let mut line = vec![0; k];
            line[0] = ta.encode(row / 18 == 2, top, mantissa(r, ta));
            line[at] = ta.encode(row / 18 % 2 == 1, top - row % 18, mantissa(r, ta));
            line
        })
        .collect();
    let b = (0..8)
        .map(|column| {
            let mut line = vec![tb.encode(false, -column, mantissa(r, tb)); k];
            line[0] = tb.encode(false, column, mantissa(r, tb));
            line
        })
        .collect();
    let c = (0..64)
        .map(|_| {
            std::array::from_fn(|column| {
                let by = r.within(-26, 3);
                if with_c { r.float(top + column as i32 + by) } else { 0.0 }
            })
        })
        .collect();
    Tile { a, b, c }
}

/// Two products that cancel, and little ones beside them.
fn cancelling(r: &mut Random, types: (Type, Type), at: usize) -> Tile {
    let mut tile = random(r, types, 12, 2, true);
    let k = elements(types);
    let at = at.min(k - 1);
    let sign = 1 << (8 * types.0.bytes() - 1);
    let top = types.0.range().1.min(20);
    for line in &mut tile.a {
        let mantissa = r.next() as u32 & ((1 << types.0.layout().1) - 1);
        let drop = r.within(0, 3);
        line[0] = types.0.encode(false, top - drop, mantissa);
        line[at] = line[0] ^ sign;
    }
    for line in &mut tile.b {
        line[at] = line[0];
    }
    for c in tile.c.iter_mut().flatten() {
        let exponent = r.within(-20, 4);
        *c = r.float(exponent);
    }
    tile
}

/// Subnormal operands alone, or beside normal ones.
fn subnormal(r: &mut Random, types: (Type, Type), both: bool) -> Tile {
    let mut tile = random(r, types, 3, 1, both);
    let mut shrink = |ty: Type, lines: &mut Vec<Vec<u32>>| {
        let fraction = (1 << ty.layout().1) - 1;
        let sign = 1 << (8 * ty.bytes() - 1);
        for element in lines.iter_mut().flatten() {
            *element = r.next() as u32 & (fraction | sign);
        }
    };
    shrink(types.0, &mut tile.a);
    if both {
        shrink(types.1, &mut tile.b);
    }
    let (least, below) = (types.0.range().0 + types.1.range().0, 2 * types.0.layout().1 as i32);
    for c in tile.c.iter_mut().flatten().filter(|c| **c != 0.0) {
        let by = r.within(-below - 3, 6);
        *c = r.float(least + by);
    }
    tile
}

/// Zeros that meet the largest numbers, beside small products: does a product with zero count?
fn zeros(r: &mut Random, types: (Type, Type)) -> Tile {
    let mut tile = random(r, types, 2, 0, false);
    let k = elements(types);
    for line in &mut tile.a {
        for (at, element) in line.iter_mut().enumerate() {
            let mantissa = r.next() as u32 & ((1 << types.0.layout().1) - 1);
            let exponent = types.0.range().0 - r.within(0, 2);
            *element = if at % 4 == 0 { 0 } else { types.0.encode(r.coin(), exponent, mantissa) };
        }
    }
    for line in &mut tile.b {
        for (at, element) in line.iter_mut().enumerate().take(k) {
            let mantissa = r.next() as u32 & ((1 << types.1.layout().1) - 1);
            let (least, most) = types.1.range();
            let exponent = if at % 4 == 0 { most } else { least + r.within(0, 2) };
            *element = types.1.encode(r.coin(), exponent, mantissa);
        }
    }
    tile
}

/// The largest operands, with accumulators of every kind.
fn largest(r: &mut Random, types: (Type, Type)) -> Tile {
    let mut tile = random(r, types, 1, 0, true);
    let all = |ty: Type| ty.encode(false, ty.range().1.min(30), (1 << ty.layout().1) - 1);
    tile.a.iter_mut().flatten().for_each(|element| *element = all(types.0));
    tile.b.iter_mut().flatten().for_each(|element| *element = all(types.1));
    let top = types.0.range().1.min(30) + types.1.range().1.min(30);
    for c in tile.c.iter_mut().flatten() {
        let by = r.within(-8, 24);
        *c = r.float(top + by);
    }
    tile
}

/// Accumulators alone, subnormal ones included.
fn accumulators(r: &mut Random, types: (Type, Type)) -> Tile {
    let mut tile = random(r, types, 1, 0, true);
    tile.a.iter_mut().flatten().for_each(|element| *element = 0);
    for (at, c) in tile.c.iter_mut().flatten().enumerate() {
        let exponent = r.within(-126, 100);
        *c = if at % 16 == 0 { f32::from_bits(r.next() as u32 & 0x807f_ffff) } else { r.float(exponent) };
    }
    tile
}

/// All cases.
pub fn tiles(types: (Type, Type)) -> Vec<Tile> {
    let r = &mut Random(7);
    let mut tiles = Vec::new();
    for spread in [1, 4, 9, 16] {
        for share in [0, 5, 9] {
            for with_c in [false, true] {
                tiles.push(random(r, types, spread, share, with_c));
            }
        }
    }
    for at in [1, 7, 15, 16, 31] {
        for full in [false, true] {
            for with_c in [false, true] {
                tiles.push(two_products(r, types, at, full, with_c));
            }
        }
    }
    for at in [1, 2, 16, 31] {
        tiles.push(cancelling(r, types, at));
    }
    tiles.push(subnormal(r, types, false));
    tiles.push(subnormal(r, types, true));
    tiles.push(zeros(r, types));
    tiles.push(largest(r, types));
    tiles.push(accumulators(r, types));
    tiles
}
