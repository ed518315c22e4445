//! What must be new in a clone because no two machines may have it: UUIDs and network addresses.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;

use super::session::Session;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Context, Error, Kind, Result};

/// A new random UUID.
pub fn new_uuid() -> Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; N];
    File::open(SOURCE).and_then(|mut file| file.read_exact(&mut bytes)).context("read random bytes from", SOURCE)?;
    Ok(bytes)
}

/// Network addresses that are taken.
#[derive(Debug, Default)]
pub struct Macs {
    taken: HashSet<[u8; 6]>,
}

impl Macs {
    /// Those of all domains of this libvirt, running or not, of its networks, and of this host.
    pub fn in_use(virsh: &Virsh) -> Result<Macs> {
        let mut macs = Macs::default();
        let mut session = Session::open(virsh)?;
        for (list, dump) in [("list --all --uuid", "dumpxml"), ("net-list --all --uuid", "net-dumpxml")] {
            let ids = session.call("look for network addresses in use", list)?;
            for id in ids.lines().map(str::trim).filter(|id| !id.is_empty()) {
                // One that was removed meanwhile has no address any more.
                if let Ok(text) = session.call("look for network addresses in use", &format!("{dump} {id}")) {
                    macs.add(&Element::parse(&text, id)?);
                }
            }
        }
        for interface in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            let address = std::fs::read_to_string(interface.path().join("address")).unwrap_or_default();
            macs.taken.extend(parse(address.trim()));
        }
        Ok(macs)
    }

    /// Notes all addresses in a document: `<mac address=''/>`, and `<host mac=''/>` of networks.
    fn add(&mut self, element: &Element) {
        let attribute = if element.name() == "mac" { "address" } else { "mac" };
        self.taken.extend(element.get(attribute).and_then(|mac| parse(&mac)));
        element.elements().for_each(|child| self.add(child));
    }

    /// A free address that begins with the same three bytes as `old`: who made the card, or which kind of virtual card
    /// it is, decides what some guests call it and some networks let through. It is taken from now on.
    pub fn new_like(&mut self, old: &str) -> Result<String> {
        let invalid = || Error::new(Kind::Invalid, "choose a network address").because(format!("{old:?} is none"));
        let old = parse(old).ok_or_else(invalid)?;
        for _ in 0..10_000 {
            let [a, b, c] = random()?;
            let new = [old[0], old[1], old[2], a, b, c];
            if self.taken.insert(new) {
                return Ok(new.map(|byte| format!("{byte:02x}")).join(":"));
            }
        }
        Err(Error::new(Kind::Busy, "choose a network address").because("none was found that is not in use"))
    }
}

fn parse(mac: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = mac.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|p| matches!(p.len(), 1..=2))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_random_ones_of_version_4() {
        let (a, b) = (new_uuid().unwrap(), new_uuid().unwrap());
        assert_ne!(a, b);
        assert_eq!((a.len(), &a[14..15]), (36, "4"));
        assert!("89ab".contains(&a[19..20]), "{a}");
    }

    #[test]
    fn new_addresses_keep_the_maker_and_are_never_taken() {
        let mut macs = Macs::default();
        let network = "<network><mac address='52:54:00:00:00:01'/><ip><dhcp><host mac='52:54:00:00:00:02'/></dhcp></ip></network>";
        macs.add(&Element::parse(network, "net").unwrap());
        assert_eq!(macs.taken.len(), 2);
        let mut seen = HashSet::new();
        for _ in 0..500 {
            let mac = macs.new_like("AC-DE-48-1-2-3").unwrap();
            assert!(mac.starts_with("ac:de:48:") && seen.insert(mac.clone()), "{mac}");
        }
        assert!(Macs::default().new_like("no").is_err());
    }
}
