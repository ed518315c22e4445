//! A domain's XML as a tree that comes out as it went in: order, white space, comments and elements that are not known
//! here stay as they are, so that only what is meant to change does.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use quick_xml::escape::{escape, unescape};
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::error::{Error, Kind, Result};

/// Elements can be so deep; libvirt's are ten deep at most.
const MOST_DEPTH: usize = 256;

/// An element with its attributes and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    name: String,
    /// Name and value, the value as it stands in the text (escaped).
    attributes: Vec<(String, String)>,
    children: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Element(Element),
    /// Text, escaped.
    Text(String),
    /// A comment or the like, with its markup.
    Other(String),
}

impl Element {
    /// An element without anything in it.
    pub fn new(name: &str) -> Element {
        Element { name: name.to_owned(), attributes: Vec::new(), children: Vec::new() }
    }

    /// Reads a document; `what` says what it is, in an error.
    pub fn parse(text: &str, what: &str) -> Result<Element> {
        read(text).map_err(|cause| {
            Error::new(Kind::Invalid, format!("read the XML of {what}")).because(cause).remedy("look at virsh dumpxml")
        })
    }

    /// The same element with one more attribute.
    pub fn with(mut self, attribute: &str, value: &str) -> Element {
        self.set(attribute, value);
        self
    }

    /// The same element with one more element in it.
    pub fn containing(mut self, child: Element) -> Element {
        self.children.push(Node::Element(child));
        self
    }

    /// Its name, with the prefix of its name space if it has one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Value of an attribute.
    pub fn get(&self, attribute: &str) -> Option<Cow<'_, str>> {
        let (_, value) = self.attributes.iter().find(|(name, _)| name == attribute)?;
        // What cannot be unescaped was refused when it was read.
        Some(unescape(value).unwrap_or(Cow::Borrowed(value)))
    }

    /// Whether an attribute has this value.
    pub fn is(&self, attribute: &str, value: &str) -> bool {
        self.get(attribute).is_some_and(|v| v == value)
    }

    /// Gives an attribute a value.
    pub fn set(&mut self, attribute: &str, value: &str) {
        let value = escape(value).into_owned();
        match self.attributes.iter_mut().find(|(name, _)| name == attribute) {
            Some((_, old)) => *old = value,
            None => self.attributes.push((attribute.to_owned(), value)),
        }
    }

    /// Takes an attribute away.
    pub fn unset(&mut self, attribute: &str) {
        self.attributes.retain(|(name, _)| name != attribute);
    }

    /// The elements in it.
    pub fn elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(|node| if let Node::Element(e) = node { Some(e) } else { None })
    }

    /// The elements in it, to be changed.
    pub fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.children.iter_mut().filter_map(|node| if let Node::Element(e) = node { Some(e) } else { None })
    }

    /// The first element of this name in it.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.elements().find(|e| e.name == name)
    }

    /// The first element of this name in it, to be changed.
    pub fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.elements_mut().find(|e| e.name == name)
    }

    /// Follows the first element of each name: `find("os/nvram")`.
    pub fn find(&self, path: &str) -> Option<&Element> {
        path.split('/').try_fold(self, |element, name| element.child(name))
    }

    /// As [`Element::find`], to be changed.
    pub fn find_mut(&mut self, path: &str) -> Option<&mut Element> {
        path.split('/').try_fold(self, |element, name| element.child_mut(name))
    }

    /// The text directly in it, without white space around it.
    pub fn text(&self) -> String {
        let raw: String =
            self.children.iter().filter_map(|n| if let Node::Text(t) = n { Some(&**t) } else { None }).collect();
        unescape(&raw).map(|text| text.trim().to_owned()).unwrap_or(raw)
    }

    /// Puts this text into it in place of everything that is there.
    pub fn set_text(&mut self, text: &str) {
        self.children = vec![Node::Text(escape(text).into_owned())];
    }

    /// Removes the elements in it that are meant, each with the white space before it.
    pub fn remove(&mut self, meant: impl Fn(&Element) -> bool) {
        let mut kept: Vec<Node> = Vec::with_capacity(self.children.len());
        for node in std::mem::take(&mut self.children) {
            match node {
                Node::Element(e) if meant(&e) => {
                    if kept.last().is_some_and(|last| matches!(last, Node::Text(t) if t.trim().is_empty())) {
                        kept.pop();
                    }
                }
                node => kept.push(node),
            }
        }
        self.children = kept;
        if self.elements().next().is_none() && self.text().is_empty() {
            self.children.retain(|node| matches!(node, Node::Other(_)));
        }
    }

    /// Adds an element at the end, on a line of its own as the elements before it.
    pub fn push(&mut self, child: Element) {
        let indent = match self.children.first() {
            Some(Node::Text(space)) if space.trim().is_empty() => Some(space.clone()),
            _ => None,
        };
        let last = if matches!(self.children.last(), Some(Node::Text(t)) if t.trim().is_empty()) {
            self.children.pop()
        } else {
            None
        };
        self.children.extend(indent.map(Node::Text));
        self.children.push(Node::Element(child));
        self.children.extend(last);
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}='{}'", value.replace('\'', "&apos;"))?;
        }
        if self.children.is_empty() {
            return f.write_str("/>");
        }
        f.write_char('>')?;
        for node in &self.children {
            match node {
                Node::Element(element) => element.fmt(f)?,
                Node::Text(text) | Node::Other(text) => f.write_str(text)?,
            }
        }
        write!(f, "</{}>", self.name)
    }
}

/// Reads a document: one element; what stands outside of it (a declaration, comments) is left out.
fn read(text: &str) -> std::result::Result<Element, String> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        let node = match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(start) => {
                if open.len() >= MOST_DEPTH {
                    return Err("its elements are too deep".into());
                }
                open.push(element(&start)?);
                continue;
            }
            Event::Empty(start) => Node::Element(element(&start)?),
            Event::End(_) => Node::Element(open.pop().ok_or("an element ends that did not begin")?),
            Event::Text(text) => Node::Text(text.to_string()),
            Event::GeneralRef(name) => {
                let text = format!("&{};", &*name);
                unescape(&text).map_err(|e| e.to_string())?;
                Node::Text(text)
            }
            Event::CData(text) => Node::Text(escape(&*text).into_owned()),
            Event::Comment(text) => Node::Other(format!("<!--{}-->", &*text)),
            Event::PI(_) | Event::Decl(_) | Event::DocType(_) => continue,
            Event::Eof => break,
        };
        match (open.last_mut(), node) {
            (Some(parent), node) => add(parent, node),
            (None, Node::Element(element)) if root.is_none() => root = Some(element),
            (None, Node::Element(_)) => return Err("it has more than one outermost element".into()),
            (None, _) => {}
        }
    }
    match (open.pop(), root) {
        (Some(element), _) => Err(format!("<{}> has no end", element.name)),
        (None, root) => root.ok_or_else(|| "it has no element".into()),
    }
}

/// Adds a node, texts that follow each other as one.
fn add(parent: &mut Element, node: Node) {
    match (parent.children.last_mut(), node) {
        (Some(Node::Text(before)), Node::Text(more)) => before.push_str(&more),
        (_, node) => parent.children.push(node),
    }
}

fn element(start: &BytesStart) -> std::result::Result<Element, String> {
    let name = start.name().0;
    // Without one it would come out as an end: `</>`.
    if name.is_empty() || name.contains(['=', '\'', '"', '&', '<', '!', '?', '/']) {
        return Err(format!("<{name}> is no element: it has no name"));
    }
    let mut element = Element::new(name);
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        unescape(&attribute.value).map_err(|e| e.to_string())?;
        element.attributes.push((attribute.key.0.to_owned(), attribute.value.into_owned()));
    }
    Ok(element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOMAIN: &str = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>a &amp; b</name>
  <!-- kept -->
  <os>
    <nvram template='/x y'>/v&apos;s</nvram>
  </os>
  <devices>
    <disk type='file'/>
    <disk type='block'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-x &quot;y&quot;'/>
  </qemu:commandline>
</domain>";

    fn domain() -> Element {
        Element::parse(DOMAIN, "test").unwrap()
    }

    #[test]
    fn what_is_not_changed_comes_out_as_it_went_in() {
        assert_eq!(domain().to_string(), DOMAIN);
        let declared = format!("<?xml version='1.0'?>\n<!-- made by hand -->\n{DOMAIN}\n");
        assert_eq!(Element::parse(&declared, "test").unwrap().to_string(), DOMAIN);
    }

    #[test]
    fn texts_and_attributes_are_read_and_written_escaped() {
        let mut domain = domain();
        assert_eq!(domain.child("name").unwrap().text(), "a & b");
        assert_eq!(domain.find("os/nvram").unwrap().text(), "/v's");
        assert_eq!(domain.find("qemu:commandline/qemu:arg").unwrap().get("value").unwrap(), "-x \"y\"");
        domain.child_mut("name").unwrap().set_text("<'\"&>");
        domain.find_mut("os/nvram").unwrap().set("template", "it's <b>");
        let again = Element::parse(&domain.to_string(), "test").unwrap();
        assert_eq!(again.child("name").unwrap().text(), "<'\"&>");
        assert_eq!(again.find("os/nvram").unwrap().get("template").unwrap(), "it's <b>");
    }

    #[test]
    fn elements_go_and_come_with_their_lines() {
        let mut domain = domain();
        let devices = domain.child_mut("devices").unwrap();
        devices.remove(|e| e.is("type", "file"));
        assert_eq!(devices.to_string(), "<devices>\n    <disk type='block'/>\n  </devices>");
        devices.push(Element::new("disk").with("type", "new"));
        assert_eq!(devices.to_string(), "<devices>\n    <disk type='block'/>\n    <disk type='new'/>\n  </devices>");
        devices.remove(|_| true);
        assert_eq!(devices.to_string(), "<devices/>");
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = "<a>".repeat(1000) + &"</a>".repeat(1000);
        for bad in [
            "",
            "text",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            "<a b=c/>",
            "<a>&no;</a>",
            "<a b='&no;'/>",
            "< />",
            "< ></ >",
            "<></>",
            &deep,
        ] {
            let error = Element::parse(bad, "domain x").expect_err(bad).to_string();
            assert!(error.contains("domain x"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_reads_the_same_again(text in "[<>/a-c ='&;!\\-\\[\\]?]{0,60}") {
            if let Ok(element) = Element::parse(&text, "test") {
                prop_assert_eq!(Element::parse(&element.to_string(), "test").unwrap(), element);
            }
        }

        #[test]
        fn any_value_survives(value in "[ -~]{0,30}") {
            let element = Element::new("a").with("b", &value);
            let again = Element::parse(&element.to_string(), "test").unwrap();
            prop_assert_eq!(again.get("b").unwrap(), value);
        }
    }
}
