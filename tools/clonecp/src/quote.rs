//! Names in messages, as `cp` writes them: quoted so that a shell reads them back and no terminal obeys them.
//!
//! Two styles: [`shell`] for file names (`'a b'`, `"it's"`, `'a'$'\n''b'`), [`locale`] for words of the command line
//! (`'x'`, with curly quotes where the locale's character set is UTF-8). In a locale of another character set,
//! everything beyond ASCII is escaped.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

/// A file name in quotes, always.
pub fn shell(name: impl AsRef<OsStr>) -> String {
    shell_bytes(name.as_ref().as_bytes(), utf8())
}

/// A file name, in quotes only if a shell would not read it back as it is.
pub fn shell_if_needed(name: impl AsRef<OsStr>) -> String {
    let bytes = name.as_ref().as_bytes();
    let plain = !bytes.is_empty()
        && units(bytes, utf8()).enumerate().all(|(place, unit)| match unit {
            Unit::Text('#' | '~') => place > 0,
            Unit::Text('{' | '}') => bytes.len() > 1,
            // The colon would look like the end of the name in a message.
            Unit::Text(c) => !" ':".contains(c) && harmless(c),
            Unit::Bytes(_) => false,
        });
    if plain { name.as_ref().to_string_lossy().into_owned() } else { shell(name) }
}

/// A word of the command line in the locale's quotation marks.
pub fn locale(word: impl AsRef<OsStr>) -> String {
    locale_bytes(word.as_ref().as_bytes(), utf8())
}

/// A piece of a name: a character that can be shown, or bytes that cannot.
enum Unit<'a> {
    Text(char),
    Bytes(&'a [u8]),
}

/// Cuts `bytes` into what can be shown and what cannot.
fn units(bytes: &[u8], utf8: bool) -> impl Iterator<Item = Unit<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let several = if utf8 && !first.is_ascii() { first_char(rest) } else { None };
        let (unit, length) = match several {
            Some(c) if printable(c) => (Unit::Text(c), c.len_utf8()),
            Some(c) => (Unit::Bytes(&rest[..c.len_utf8()]), c.len_utf8()),
            None if first.is_ascii_graphic() || first == b' ' => (Unit::Text(first as char), 1),
            None => (Unit::Bytes(&rest[..1]), 1),
        };
        rest = &rest[length..];
        Some(unit)
    })
}

/// The character that `bytes` start with, if they start with one.
fn first_char(bytes: &[u8]) -> Option<char> {
    (1..=bytes.len().min(4)).find_map(|n| std::str::from_utf8(&bytes[..n]).ok()?.chars().next())
}

/// Means nothing special to a shell between double quotes, nor outside of quotes (the space excepted).
fn harmless(c: char) -> bool {
    !c.is_ascii() || c.is_ascii_alphanumeric() || " %'+,-./:@]_".contains(c)
}

fn shell_bytes(bytes: &[u8], utf8: bool) -> String {
    let in_double_quotes = bytes.contains(&b'\'')
        && units(bytes, utf8).enumerate().all(|(place, unit)| match unit {
            Unit::Text('#' | '~') => place == 0,
            Unit::Text(c) => harmless(c),
            Unit::Bytes(_) => false,
        });
    if in_double_quotes {
        return format!("\"{}\"", String::from_utf8_lossy(bytes));
    }
    let mut out = String::from("'");
    let mut escaping = false;
    for unit in units(bytes, utf8) {
        match unit {
            Unit::Text('\'') => {
                out.push_str("'\\''");
                escaping = false;
            }
            Unit::Text(c) => {
                if escaping {
                    out.push_str("''");
                    escaping = false;
                }
                out.push(c);
            }
            Unit::Bytes(bytes) => {
                if !escaping {
                    out.push_str("'$'");
                    escaping = true;
                }
                bytes.iter().for_each(|&b| escape(&mut out, b));
            }
        }
    }
    out.push('\'');
    out
}

fn locale_bytes(bytes: &[u8], utf8: bool) -> String {
    let (open, close) = if utf8 { ('\u{2018}', '\u{2019}') } else { ('\'', '\'') };
    let mut out = String::from(open);
    for unit in units(bytes, utf8) {
        match unit {
            Unit::Text(c) => {
                if c == '\\' || c == close {
                    out.push('\\');
                }
                out.push(c);
            }
            Unit::Bytes(bytes) => bytes.iter().for_each(|&b| escape(&mut out, b)),
        }
    }
    out.push(close);
    out
}

/// Appends the escape sequence of one byte, as in C.
fn escape(out: &mut String, byte: u8) {
    let letter = match byte {
        0x07 => 'a',
        0x08 => 'b',
        b'\t' => 't',
        b'\n' => 'n',
        0x0b => 'v',
        0x0c => 'f',
        b'\r' => 'r',
        _ => return out.push_str(&format!("\\{byte:03o}")),
    };
    out.push('\\');
    out.push(letter);
}

unsafe extern "C" {
    safe fn iswprint(character: libc::c_uint) -> libc::c_int;
}

/// The locale can show this character.
fn printable(c: char) -> bool {
    iswprint(c as libc::c_uint) != 0
}

/// The user's locale writes in UTF-8. Asked once; sets the process's character type to the user's.
fn utf8() -> bool {
    static UTF8: OnceLock<bool> = OnceLock::new();
    *UTF8.get_or_init(|| {
        // SAFETY: an empty, terminated string asks for the locale of the environment; `OnceLock` lets only one thread
        // in, and no other code of this program reads the C locale before this call has returned.
        unsafe { libc::setlocale(libc::LC_CTYPE, c"".as_ptr()) };
        // SAFETY: `nl_langinfo` gives a terminated string that stays as it is until the next `setlocale`.
        let codeset = unsafe { CStr::from_ptr(libc::nl_langinfo(libc::CODESET)) };
        codeset.to_bytes().eq_ignore_ascii_case(b"UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_read_back_in_a_shell() {
        let cases: [(&[u8], &str); 9] = [
            (b"a b", "'a b'"),
            (b"", "''"),
            (b"it's", "\"it's\""),
            (b"it's $x", "'it'\\''s $x'"),
            (b"a\nb", "'a'$'\\n''b'"),
            (b"a\x01'", "'a'$'\\001'\\'''"),
            (b"\x1b[2J", "''$'\\033''[2J'"),
            (b"\xc3\xa4", "''$'\\303\\244'"),
            (b"~'", "\"~'\""),
        ];
        for (name, quoted) in cases {
            assert_eq!(shell_bytes(name, false), quoted, "{name:?}");
        }
    }

    #[test]
    fn words_stand_in_the_marks_of_the_locale() {
        assert_eq!(locale_bytes(b"fo'o\n", false), "'fo\\'o\\n'");
        assert_eq!(locale_bytes(b"fo'o", true), "\u{2018}fo'o\u{2019}");
    }
}
