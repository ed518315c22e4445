//! The table of docs/domain.md, item by item: what a clone's definition keeps of its source's and what it does not.
//! That libvirt takes the result is tested with a real one, in tests/libvirt.

use super::disks::{self, Action, Disk, DiskOptions, Policy};
use super::firmware::{self, TpmPolicy};
use super::identity::Macs;
use super::parts::Part;
use super::rewrite::{self, Identity};
use super::virsh::Virsh;
use super::xml::Element;

const OLD: &str = "11111111-1111-4111-8111-111111111111";
const NEW: &str = "22222222-2222-4222-8222-222222222222";

/// The definition of a clone "web" of a domain "gold" with these elements, and what was said about it.
fn clone_of(inside: &str) -> (Element, Vec<String>) {
    let text = format!("<domain type='kvm'><name>gold</name><uuid>{OLD}</uuid>{inside}</domain>");
    let mut domain = Element::parse(&text, "test").unwrap();
    let new = Identity { name: "web".into(), uuid: NEW.into() };
    let notes = rewrite::rewrite(&mut domain, &new, &mut Macs::default()).unwrap();
    (domain, notes)
}

/// The one device of the clone of a domain that has one device.
fn device(inside: &str) -> Element {
    clone_of(&format!("<devices>{inside}</devices>")).0.find("devices").unwrap().elements().next().unwrap().clone()
}

/// Checks that a device is the same in the clone.
#[track_caller]
fn kept(inside: &str) {
    assert_eq!(device(inside).to_string(), inside);
}

#[test]
fn name_and_uuid_are_new() {
    let (domain, _) = clone_of("");
    assert_eq!(domain.to_string(), format!("<domain type='kvm'><name>web</name><uuid>{NEW}</uuid></domain>"));
}

#[test]
fn the_uuid_of_the_smbios_tables_is_the_new_one_and_serial_numbers_stay() {
    let smbios = "<sysinfo type='smbios'><system><entry name='uuid'>OLD</entry><entry name='serial'>s1</entry></system></sysinfo>";
    let (domain, _) = clone_of(smbios);
    assert_eq!(domain.child("sysinfo").unwrap().to_string(), smbios.replace("OLD", NEW));
}

#[test]
fn the_generation_id_is_new() {
    let (domain, _) = clone_of(&format!("<genid>{OLD}</genid>"));
    let id = domain.child("genid").unwrap().text();
    assert!(id != OLD && id != NEW && id.len() == 36, "{id}");
    assert!(clone_of("").0.child("genid").is_none());
}

#[test]
fn title_metadata_boot_order_addresses_and_what_is_not_known_stay() {
    let inside = "<title>t</title><metadata><x:a xmlns:x='u'/></metadata><memoryBacking><hugepages/></memoryBacking>\
                  <os><boot dev='hd'/><loader readonly='yes' type='pflash'>/c.fd</loader><kernel>/k</kernel></os>\
                  <cpu mode='host-passthrough'/><launchSecurity type='sev'/><seclabel type='none'/><new a='b'/>\
                  <devices><emulator>/q</emulator><controller type='pci' index='1'/>\
                  <filesystem type='mount'><source dir='/srv'/><target dir='s'/></filesystem>\
                  <watchdog model='itco'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
                  <shmem name='s'/><panic model='pvpanic'/></devices>";
    let (domain, notes) = clone_of(inside);
    assert_eq!(domain.to_string(), format!("<domain type='kvm'><name>web</name><uuid>{NEW}</uuid>{inside}</domain>"));
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn network_addresses_are_new_and_keep_the_maker_and_the_place_on_the_bus() {
    let card = device(
        "<interface type='network'><mac address='00:16:3e:01:02:03'/><source network='default'/><target dev='web0'/>\
         <model type='virtio'/><boot order='2'/><address type='pci' bus='0x01'/></interface>",
    );
    let mac = card.child("mac").unwrap().get("address").unwrap().into_owned();
    assert!(mac.starts_with("00:16:3e:") && mac != "00:16:3e:01:02:03", "{mac}");
    assert!(card.child("target").is_none());
    assert!(card.child("boot").is_some() && card.child("address").unwrap().is("bus", "0x01"));
}

#[test]
fn the_identity_at_a_virtual_switch_is_new() {
    let card = device(&format!(
        "<interface type='bridge'><virtualport type='openvswitch'><parameters interfaceid='{OLD}' profileid='p'/></virtualport></interface>"
    ));
    let parameters = card.find("virtualport/parameters").unwrap();
    assert!(!parameters.is("interfaceid", OLD) && parameters.is("profileid", "p"));
}

#[test]
fn screens_get_free_ports() {
    let vnc = device(
        "<graphics type='vnc' port='5901' autoport='no' websocket='5700' passwd='x'><listen type='address' address='0.0.0.0'/></graphics>",
    );
    assert_eq!(
        vnc.to_string(),
        "<graphics type='vnc' port='-1' autoport='yes' websocket='-1' passwd='x'><listen type='address' address='0.0.0.0'/></graphics>"
    );
    let spice = device("<graphics type='spice' port='5901' tlsPort='5902' autoport='no'/>");
    assert_eq!(spice.to_string(), "<graphics type='spice' autoport='yes'/>");
    let socket = device(
        "<graphics type='vnc' socket='/run/gold.sock'><listen type='socket' socket='/run/gold.sock'/></graphics>",
    );
    assert_eq!(socket.to_string(), "<graphics type='vnc'><listen type='socket'/></graphics>");
    kept("<graphics type='spice'><listen type='none'/><gl enable='yes'/></graphics>");
    kept("<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>");
}

#[test]
fn files_and_sockets_of_serial_ports_get_a_name_of_their_own() {
    for (before, after) in [
        (
            "<serial type='file'><source path='/log/gold.log'/></serial>",
            "<serial type='file'><source path='/log/web.log'/></serial>",
        ),
        (
            "<serial type='file'><source path='/log/console.log'/></serial>",
            "<serial type='file'><source path='/log/console-web.log'/></serial>",
        ),
        (
            "<console type='unix'><source mode='bind' path='/run/c'/></console>",
            "<console type='unix'><source mode='bind' path='/run/c-web'/></console>",
        ),
        (
            "<serial type='pty'><log file='/log/gold-1.log'/></serial>",
            "<serial type='pty'><log file='/log/web-1.log'/></serial>",
        ),
        (
            "<parallel type='pipe'><source path='/run/golden'/></parallel>",
            "<parallel type='pipe'><source path='/run/golden-web'/></parallel>",
        ),
        ("<audio id='1' type='file' path='/a/gold.wav'/>", "<audio id='1' type='file' path='/a/web.wav'/>"),
    ] {
        assert_eq!(device(before).to_string(), after);
    }
    kept("<serial type='unix'><source mode='connect' path='/run/collector'/></serial>");
    kept("<serial type='pty'><target type='isa-serial' port='0'/></serial>");
}

#[test]
fn channels_get_a_socket_of_their_own() {
    let agent = "<channel type='unix'><source mode='bind' path='PATH'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
    let generated =
        device(&agent.replace("PATH", "/var/lib/libvirt/qemu/channel/target/domain-gold/org.qemu.guest_agent.0"));
    assert!(generated.child("source").is_none() && generated.child("target").is_some());
    let own = device(&agent.replace("PATH", "/run/gold.agent"));
    assert!(own.child("source").unwrap().is("path", "/run/web.agent"));
    kept("<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>");
}

#[test]
fn the_vsock_address_is_chosen_anew() {
    let vsock = device("<vsock model='virtio'><cid auto='no' address='3'/><address type='pci'/></vsock>");
    assert_eq!(vsock.to_string(), "<vsock model='virtio'><cid auto='yes'/><address type='pci'/></vsock>");
}

#[test]
fn what_only_one_machine_can_have_stays_and_is_said() {
    for (inside, hint) in [
        ("<devices><hostdev mode='subsystem' type='pci'/></devices>", "device of the host"),
        ("<devices><interface type='hostdev'/></devices>", "network card of the host"),
        ("<devices><interface type='vhostuser'/></devices>", "vhost-user"),
        ("<devices><serial type='tcp'><source mode='bind' host='h' service='4000'/></serial></devices>", "port 4000"),
        ("<devices><serial type='dev'><source path='/dev/ttyS0'/></serial></devices>", "/dev/ttyS0"),
        ("<devices><tpm><backend type='passthrough'/></tpm></devices>", "host's TPM"),
        ("<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>", "arguments"),
    ] {
        let (domain, notes) = clone_of(inside);
        assert!(notes.len() == 1 && notes[0].contains(hint), "{inside}: {notes:?}");
        assert!(domain.to_string().contains(inside), "{domain}");
    }
}

#[test]
fn a_name_inside_of_a_path_is_replaced_only_as_a_word() {
    for (path, own) in [
        ("/log/gold.log", "/log/web.log"),
        ("/log/gold_VARS.fd", "/log/web_VARS.fd"),
        ("/log/my-gold-1", "/log/my-web-1"),
        ("/gold/golden.log", "/gold/golden-web.log"),
        ("/gold/x", "/gold/x-web"),
        ("/log/.hidden", "/log/.hidden-web"),
    ] {
        assert_eq!(rewrite::own_path(path, "gold", "web"), own);
    }
}

fn firmware_of(inside: &str) -> crate::error::Result<(Element, Vec<Part>)> {
    let mut domain = Element::parse(&format!("<domain>{inside}</domain>"), "test").unwrap();
    let parts = firmware::rewrite(&mut domain, ("gold", OLD), ("web", NEW), TpmPolicy::Copy, &Virsh::default())?;
    Ok((domain, parts))
}

#[test]
fn nvram_gets_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gold_VARS.fd");
    let text = path.to_str().unwrap();
    let nvram = format!("<os><nvram template='/t.fd'>{text}</nvram></os>");
    let (domain, parts) = firmware_of(&nvram).unwrap();
    // Never started: there is nothing to copy yet.
    assert!(!parts[0].is_there());
    assert_eq!(domain.find("os/nvram").unwrap().text(), text.replace("gold", "web"));
    assert!(domain.find("os/nvram").unwrap().is("template", "/t.fd"));
    std::fs::write(&path, "vars").unwrap();
    let (_, parts) = firmware_of(&nvram).unwrap();
    assert!(parts[0].is_there());
    assert_eq!((parts[0].from.as_path(), parts[0].to.as_path()), (&*path, &*dir.path().join("web_VARS.fd")));
    let by_source = format!("<os><nvram type='file'><source file='{text}'/></nvram></os>");
    let (domain, _) = firmware_of(&by_source).unwrap();
    assert!(domain.find("os/nvram/source").unwrap().is("file", &text.replace("gold", "web")));
    let odd = format!("<os><nvram>{}</nvram></os>", dir.path().join("vars").display());
    let (domain, _) = firmware_of(&odd).unwrap();
    assert_eq!(domain.find("os/nvram").unwrap().text(), dir.path().join("web_VARS.fd").to_str().unwrap());
    let (domain, _) = firmware_of("<os firmware='efi'><nvram template='/t.fd'/></os>").unwrap();
    assert_eq!(domain.find("os/nvram").unwrap().text(), "");
}

#[test]
fn firmware_that_cannot_be_two_machines_is_refused() {
    let network = "<os><nvram type='network'><source protocol='nbd'/></nvram></os>";
    assert!(firmware_of(network).unwrap_err().to_string().contains("no file"));
    let combined = "<os><loader readonly='no' type='pflash'>/f.fd</loader></os>";
    assert!(firmware_of(combined).unwrap_err().to_string().contains("one writable file"));
    let nvdimm = "<devices><memory model='nvdimm'><source><path>/m</path></source></memory></devices>";
    assert!(firmware_of(nvdimm).unwrap_err().to_string().contains("NVDIMM"));
}

#[test]
fn the_state_of_a_tpm_in_a_directory_of_its_own_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gold");
    std::fs::create_dir(&path).unwrap();
    let tpm = format!(
        "<devices><tpm><backend type='emulator'><source type='dir' path='{}'/></backend></tpm></devices>",
        path.display()
    );
    let (domain, parts) = firmware_of(&tpm).unwrap();
    let own = dir.path().join("web");
    assert_eq!((&*parts[0].from, &*parts[0].to), (&*path, &*own));
    assert!(domain.find("devices/tpm/backend/source").unwrap().is("path", own.to_str().unwrap()));
}

/// What becomes of the one disk of a domain.
fn decided(disk: &str, options: &DiskOptions) -> Disk {
    let domain = Element::parse(&format!("<domain><devices>{disk}</devices></domain>"), "test").unwrap();
    disks::plan(&Virsh::default(), &domain, options, None).unwrap().remove(0)
}

fn options() -> DiskOptions {
    DiskOptions { rules: Vec::new(), shared: Policy::Share, luns: None }
}

#[test]
fn writable_disks_in_files_are_cloned_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    std::fs::write(&path, "x").unwrap();
    let disk = |attributes: &str, flags: &str| {
        format!("<disk type='file' {attributes}><source file='{}'/><target dev='vda'/>{flags}</disk>", path.display())
    };
    let action = |disk: &str| decided(disk, &options()).action;
    for cloned in [disk("device='disk'", ""), disk("", ""), disk("device='floppy'", ""), disk("", "<transient/>")] {
        assert!(matches!(action(&cloned), Action::Clone(_)), "{cloned}");
    }
    for stays in [disk("", "<readonly/>"), disk("device='cdrom'", ""), disk("", "<shareable/>")] {
        assert_eq!(action(&stays), Action::Keep, "{stays}");
    }
    assert_eq!(action("<disk type='file' device='cdrom'><target dev='sda'/></disk>"), Action::Keep);
    for other in [
        "<disk type='block'><source dev='/dev/sdz'/><target dev='vda'/></disk>",
        "<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vda'/></disk>",
    ] {
        assert_eq!(action(other), Action::KeepWritable);
        assert_eq!(decided(other, &DiskOptions { luns: Some(Policy::Skip), ..options() }).action, Action::Drop);
        assert_eq!(decided(other, &DiskOptions { luns: Some(Policy::Share), ..options() }).action, Action::Keep);
    }
    let shared = disk("", "<shareable/>");
    assert_eq!(decided(&shared, &DiskOptions { shared: Policy::Skip, ..options() }).action, Action::Drop);
    assert!(matches!(decided(&shared, &DiskOptions { shared: Policy::Clone, ..options() }).action, Action::Clone(_)));
}

#[test]
fn rules_for_a_disk_go_before_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    std::fs::write(&path, "x").unwrap();
    let disk = format!(
        "<disk type='file' device='cdrom'><source file='{}'/><target dev='vda'/><readonly/></disk>",
        path.display()
    );
    let with = |rule: disks::DiskRule| {
        let rule = disks::DiskRule { target: "vda".into(), ..rule };
        decided(&disk, &DiskOptions { rules: vec![rule], ..options() }).action
    };
    assert_eq!(with(disks::DiskRule { skip: true, ..Default::default() }), Action::Drop);
    assert_eq!(with(disks::DiskRule { share: true, ..Default::default() }), Action::Keep);
    assert!(matches!(with(disks::DiskRule { place: Some("/p/x".into()), ..Default::default() }), Action::Clone(_)));
}

#[test]
fn a_cloned_disk_differs_in_its_file_only() {
    let disk = |file: &str, below: &str| {
        format!(
            "<disk type='file' device='disk' snapshot='external'><driver name='qemu' type='qcow2' cache='none'/><source file='{file}'/>{below}\
             <target dev='vda' bus='virtio'/><iotune><read_iops_sec>9</read_iops_sec></iotune><serial>S1</serial><wwn>5000c50015ea71aa</wwn>\
             <encryption format='luks'><secret type='passphrase' uuid='{OLD}'/></encryption><boot order='1'/><address type='pci' bus='0x04'/></disk>"
        )
    };
    let below = "<backingStore type='file'><format type='raw'/><source file='/p/base'/><backingStore/></backingStore>";
    let rewritten = |disk: &str| {
        let mut domain = Element::parse(&format!("<domain><devices>{disk}</devices></domain>"), "test").unwrap();
        disks::rewrite(&mut domain, &[], &[("vda".into(), "/p/web.img".into(), None)]);
        domain.find("devices/disk").unwrap().to_string()
    };
    assert_eq!(rewritten(&disk("/p/gold.img", below)), disk("/p/web.img", ""));
    assert_eq!(rewritten(&disk("/p/gold.img", "<backingStore/>")), disk("/p/web.img", "<backingStore/>"));
}
