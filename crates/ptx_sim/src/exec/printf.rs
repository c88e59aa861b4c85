//! The formats of `printf`, as CUDA's `vprintf` has them ("CUDA C++ Programming Guide: Formatted Output").

use std::iter::Peekable;
use std::str::Chars;

/// A conversion: what stands between `%` and its letter.
#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
    long: bool,
}

/// The text of a format, and how many arguments it took. `next` gives the bits of the next argument of so
/// many bytes, `text` the text at an address.
pub(super) fn format(
    format: &str,
    mut next: impl FnMut(u64) -> Result<u64, String>,
    text: impl Fn(u64) -> Result<String, String>,
) -> Result<(String, u32), String> {
    let mut printed = String::new();
    let mut count = 0;
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            printed.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            printed.push('%');
            continue;
        }
        let mut argument = |bytes: u64| {
            count += 1;
            next(bytes)
        };
        let spec = Spec::read(&mut chars, &mut argument)?;
        let conversion = chars.next().ok_or("the format ends in a conversion")?;
        let bytes = if spec.long { 8 } else { 4 };
        printed += &match conversion {
            'd' | 'i' => {
                let bits = argument(bytes)?;
                let value = if spec.long { bits as i64 } else { i64::from(bits as i32) };
                spec.integer(spec.sign(value < 0), &value.unsigned_abs().to_string())
            }
            'u' => spec.integer("", &argument(bytes)?.to_string()),
            'x' => spec.integer(if spec.alternate { "0x" } else { "" }, &format!("{:x}", argument(bytes)?)),
            'X' => spec.integer(if spec.alternate { "0X" } else { "" }, &format!("{:X}", argument(bytes)?)),
            'o' => spec.integer(if spec.alternate { "0" } else { "" }, &format!("{:o}", argument(bytes)?)),
            'p' => spec.padded("", &format!("{:#x}", argument(8)?), false),
            'c' => spec.padded("", &char::from(argument(4)? as u8).to_string(), false),
            's' => {
                let whole = text(argument(8)?)?;
                let shown: String = whole.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
                spec.padded("", &shown, false)
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
                let lower = spec.float(f64::from_bits(argument(8)?), conversion.to_ascii_lowercase());
                if conversion.is_ascii_uppercase() { lower.to_uppercase() } else { lower }
            }
            other => return Err(format!("`%{other}` is not known")),
        };
    }
    Ok((printed, count))
}

impl Spec {
    fn read(
        chars: &mut Peekable<Chars<'_>>,
        argument: &mut impl FnMut(u64) -> Result<u64, String>,
    ) -> Result<Spec, String> {
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                ' ' => spec.space = true,
                '#' => spec.alternate = true,
                _ => spec.zeros = true,
            }
        }
        spec.width = match number(chars, argument)? {
            width if width < 0 => {
                spec.left = true;
                width.unsigned_abs() as usize
            }
            width => width as usize,
        };
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = usize::try_from(number(chars, argument)?).ok();
        }
        while let Some(length) = chars.next_if(|c| "hlLjzt".contains(*c)) {
            spec.long |= length != 'h' && length != 'L';
        }
        Ok(spec)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    /// `prefix` and `body`, as wide as asked for; `zeros` may fill up between them.
    fn padded(&self, prefix: &str, body: &str, zeros: bool) -> String {
        let fill = self.width.saturating_sub(prefix.len() + body.chars().count());
        match (self.left, zeros && self.zeros) {
            (true, _) => format!("{prefix}{body}{}", " ".repeat(fill)),
            (_, true) => format!("{prefix}{}{body}", "0".repeat(fill)),
            _ => format!("{}{prefix}{body}", " ".repeat(fill)),
        }
    }

    fn integer(&self, prefix: &str, digits: &str) -> String {
        let least = self.precision.unwrap_or(1);
        // No digit at all is what a zero of precision 0 has.
        let digits = if least == 0 && digits == "0" { "" } else { digits };
        self.padded(prefix, &format!("{digits:0>least$}"), self.precision.is_none())
    }

    fn float(&self, value: f64, conversion: char) -> String {
        let sign = self.sign(value.is_sign_negative() && !value.is_nan());
        let value = value.abs();
        if !value.is_finite() {
            return self.padded(sign, if value.is_nan() { "nan" } else { "inf" }, false);
        }
        let precision = self.precision.unwrap_or(6);
        let body = match conversion {
            'f' => format!("{value:.precision$}"),
            'e' => scientific(value, precision).0,
            _ => {
                let precision = precision.max(1);
                let (text, exponent) = scientific(value, precision - 1);
                let plain = (-4..precision as i32).contains(&exponent);
                let text = if plain {
                    format!("{value:.*}", (precision as i32 - 1 - exponent) as usize)
                } else {
                    text
                };
                if self.alternate { text } else { without_zeros(&text) }
            }
        };
        self.padded(sign, &body, true)
    }
}

/// A number of the format, or of an argument for `*`; 0 if there is none.
fn number(
    chars: &mut Peekable<Chars<'_>>,
    argument: &mut impl FnMut(u64) -> Result<u64, String>,
) -> Result<i32, String> {
    if chars.next_if_eq(&'*').is_some() {
        return Ok(argument(4)? as i32);
    }
    let mut value = 0i32;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        value = value.saturating_mul(10).saturating_add(digit as i32 - '0' as i32);
    }
    if value > 4096 { Err(format!("a width or precision of {value}")) } else { Ok(value) }
}

/// As C writes it, with a sign and two digits of exponent at least; and the exponent.
fn scientific(value: f64, precision: usize) -> (String, i32) {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    (format!("{mantissa}e{sign}{:02}", exponent.abs()), exponent)
}

/// Without the zeros at the end of the fraction.
fn without_zeros(text: &str) -> String {
    let (mantissa, exponent) = text.find('e').map_or((text, ""), |at| text.split_at(at));
    if !mantissa.contains('.') {
        return text.to_string();
    }
    format!("{}{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_c_does() {
        let check = |pattern: &str, arguments: &[u64], expected: &str| {
            let mut rest = arguments.iter();
            let next = |_| rest.next().copied().ok_or_else(|| "too few".to_string());
            let printed = format(pattern, next, |at| Ok(format!("text {at}")));
            assert_eq!(printed, Ok((expected.to_string(), arguments.len() as u32)), "{pattern}");
        };
        let f = f64::to_bits;
        check("plain 100%%\n", &[], "plain 100%\n");
        check(
            "%d %5d|%-5d|%05d %+d",
            &[-1i32 as u32 as u64, 42, 42, -42i32 as u32 as u64, 7],
            "-1    42|42   |-0042 +7",
        );
        check("%u %x %#X %o %.3d", &[u32::MAX.into(), 255, 255, 8, 7], "4294967295 ff 0XFF 10 007");
        check("%ld %llu %*d", &[-5i64 as u64, u64::MAX, 4, 1], "-5 18446744073709551615    1");
        check("%s|%7.4s|%c|%p", &[1, 2, 65, 4096], "text 1|   text|A|0x1000");
        check(
            "%f %.2f %8.1f %e",
            &[f(1.5), f(-0.125), f(9.96), f(12345.678)],
            "1.500000 -0.12     10.0 1.234568e+04",
        );
        check("%g %g %g %g", &[f(0.0001), f(1e-5), f(100000.0), f(1e6)], "0.0001 1e-05 100000 1e+06");
        check("%G %f %05.1f", &[f(f64::INFINITY), f(f64::NAN), f(-2.5)], "INF nan -02.5");
        for wrong in ["%d", "%", "%q", "%9999d"] {
            let none = |_| Err("none".to_string());
            assert!(format(wrong, none, |_| Ok(String::new())).is_err(), "{wrong}");
        }
    }
}
