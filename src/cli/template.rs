//! Names of many clones: `vm{}.img` gives `vm1.img`, `vm2.img`; `vm{:03}.img` gives `vm001.img`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Most digits that a number can be filled up to.
const MOST_DIGITS: usize = 20;

/// A name with places for a number.
#[derive(Debug)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(Vec<u8>),
    /// The number, with at least so many digits.
    Number(usize),
}

impl Template {
    /// Reads a template; it must have a place for the number.
    pub fn parse(text: &OsStr) -> Result<Template, String> {
        let shown = || format!("{:?}", text);
        let mut parts = Vec::new();
        let mut rest = text.as_bytes();
        while let Some(start) = rest.iter().position(|&b| b == b'{') {
            let Some(length) = rest[start..].iter().position(|&b| b == b'}') else { break };
            parts.push(Part::Text(rest[..start].to_vec()));
            let inside = &rest[start + 1..start + length];
            parts.push(Part::Number(digits(inside).ok_or_else(|| {
                format!("{} is not a name for many clones: write {{}} or {{:03}} for the number", shown())
            })?));
            rest = &rest[start + length + 1..];
        }
        parts.push(Part::Text(rest.to_vec()));
        if parts.len() == 1 {
            return Err(format!("{} has no {{}} for the number of each clone, such as 'vm{{}}.img'", shown()));
        }
        Ok(Template { parts })
    }

    /// The name for one number.
    pub fn name(&self, number: u32) -> OsString {
        let mut name = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => name.extend_from_slice(text),
                Part::Number(width) => name.extend(format!("{number:0width$}").into_bytes()),
            }
        }
        OsString::from_vec(name)
    }
}

/// What stands in the braces: nothing, or `:0` and the number of digits.
fn digits(inside: &[u8]) -> Option<usize> {
    if inside.is_empty() {
        return Some(1);
    }
    let width = std::str::from_utf8(inside.strip_prefix(b":0")?).ok()?;
    let plain = !width.is_empty() && width.bytes().all(|b| b.is_ascii_digit());
    width.parse().ok().filter(|n| plain && (1..=MOST_DIGITS).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(template: &str, number: u32) -> OsString {
        Template::parse(OsStr::new(template)).unwrap().name(number)
    }

    #[test]
    fn numbers_stand_where_the_braces_are() {
        assert_eq!(name("vm{}.img", 7), "vm7.img");
        assert_eq!(name("vm{:03}.img", 7), "vm007.img");
        assert_eq!(name("vm{:03}.img", 12345), "vm12345.img");
        assert_eq!(name("lab{}/disk-{:02}", 3), "lab3/disk-03");
        assert_eq!(name("{}", 1), "1");
        assert_eq!(name("a{}b{", 1), "a1b{");
    }

    #[test]
    fn other_braces_are_refused() {
        for bad in ["vm.img", "vm{", "vm{x}", "vm{:3}", "vm{:0}", "vm{:021}", "vm{:0-1}", "vm{:0+3}", ""] {
            let error = Template::parse(OsStr::new(bad)).expect_err(bad);
            assert!(error.contains("{}"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics_and_names_of_different_numbers_differ(bytes in ".*", a: u32, b: u32) {
            if let Ok(template) = Template::parse(OsStr::new(&bytes)) {
                prop_assert_eq!(template.name(a) == template.name(b), a == b);
            }
        }
    }
}
