//! Mount options: the `mountOptions` of a StorageClass, taken apart and looked through before anything is mounted.
//!
//! Called by the capabilities. What could cost an acknowledged write, reach another device, or change what the mount is,
//! is refused by its name. Whether the file system knows an option is the kernel's to say. The CSI specification
//! lets flags hold something confidential, so nothing is quoted but words of the lists below and single characters.

use tonic::Code;

use crate::Refusal;

/// The CSI specification caps the mount flags of a capability at 4 KiB. The kernel takes one page of them as well.
const BYTES_MAX: usize = 4096;

/// Why an option is refused, and those that are for it. One that ends in `=` stands for all its values.
const REFUSED: [(&str, &[&str]); 5] = [
    (
        "what was acknowledged could be lost",
        &["nobarrier", "barrier=", "norecovery", "noload", "journal_async_commit", "errors=", "abort"],
    ),
    (
        "it reaches a device or a place that is not the volume's",
        &["logdev=", "rtdev=", "journal_dev=", "journal_path=", "sb=", "loop", "loop=", "offset=", "sizelimit="],
    ),
    ("two mounts of one file system must not go unnoticed", &["nouuid"]),
    (
        "it changes what the mount is",
        &[
            "remount",
            "bind",
            "rbind",
            "move",
            "shared",
            "rshared",
            "slave",
            "rslave",
            "private",
            "rprivate",
            "unbindable",
            "runbindable",
        ],
    ),
    (
        "it means something in /etc/fstab only",
        &["auto", "noauto", "user", "users", "nouser", "owner", "group", "_netdev", "nofail", "x-", "comment="],
    ),
];

/// The options one by one, in the order given. An entry may hold several, with commas between them.
pub(super) fn parse(field: &str, flags: &[String]) -> Result<Vec<String>, Refusal> {
    if flags.iter().map(String::len).sum::<usize>() > BYTES_MAX {
        let message = format!("{field} is too long: allowed is up to {BYTES_MAX} bytes in all");
        return Err(Refusal::new(Code::InvalidArgument, field.to_owned(), message));
    }
    let mut options = Vec::new();
    for (index, flag) in flags.iter().enumerate() {
        let field = format!("{field}[{index}]");
        for option in flag.split(',') {
            check(&field, option)?;
            options.push(option.to_owned());
        }
    }
    let has = |wanted: &str| options.iter().any(|option| option == wanted);
    if has("ro") && has("rw") {
        let message = format!("{field} has both ro and rw: allowed is one of them");
        return Err(Refusal::new(Code::InvalidArgument, field.to_owned(), message));
    }
    Ok(options)
}

fn check(field: &str, option: &str) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(Code::InvalidArgument, field.to_owned(), message));
    if option.is_empty() {
        return refuse(format!("{field} is empty or has an empty part: allowed is an option of mount(8)"));
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-=.:/+%@".contains(letter);
    if let Some(strange) = option.chars().find(|letter| !plain(*letter)) {
        return refuse(format!(
            "{field} has the character {strange:?}: allowed are letters, digits and _ - = . : / + % @"
        ));
    }
    let named =
        |name: &&&str| option == **name || ((name.ends_with('=') || name.ends_with('-')) && option.starts_with(**name));
    match REFUSED.iter().find_map(|(why, names)| Some((why, names.iter().find(named)?))) {
        // What ext4 is made with already.
        Some((_, &"errors=")) if option == "errors=remount-ro" => Ok(()),
        Some((_, &"barrier=")) if option == "barrier=1" => Ok(()),
        Some((why, name)) => refuse(format!("{field} has the option {name}, which is not allowed: {why}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str]) -> Result<Vec<String>, String> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        parse("m", &flags).map_err(|refusal| {
            assert_eq!(refusal.code, Code::InvalidArgument);
            refusal.message
        })
    }

    #[test]
    fn options_are_taken_apart_and_kept_in_order() {
        assert_eq!(read(&[]), Ok(vec![]));
        let options = read(&["nosuid", "noatime,logbufs=8", "prjquota", "errors=remount-ro", "ro"]).unwrap();
        assert_eq!(options, ["nosuid", "noatime", "logbufs=8", "prjquota", "errors=remount-ro", "ro"]);
    }

    #[test]
    fn what_would_break_a_volume_is_refused_by_name() {
        let table = [
            ("nobarrier", "m[0] has the option nobarrier, which is not allowed: what was acknowledged could be lost"),
            ("barrier=0", "barrier="),
            ("norecovery", "norecovery"),
            ("noload", "noload"),
            ("errors=continue", "errors="),
            ("logdev=/dev/sda", "logdev="),
            ("loop", "not the volume's"),
            ("nouuid", "m[0] has the option nouuid, which is not allowed: two mounts of one file system"),
            ("remount", "changes what the mount is"),
            ("noatime,bind", "bind"),
            ("x-systemd.automount", "/etc/fstab only"),
        ];
        for (option, sentence) in table {
            let refusal = read(&[option]).unwrap_err();
            assert!(refusal.contains(sentence), "{option}: {refusal}");
        }
        assert!(read(&["barrier=1", "noloadx", "grpid", "nodiscard"]).is_ok());
    }

    #[test]
    fn ro_and_rw_exclude_each_other() {
        assert!(read(&["ro", "rw"]).unwrap_err().contains("both ro and rw"));
        assert!(read(&["rw", "noatime"]).is_ok());
    }

    #[test]
    fn strange_characters_are_named_and_nothing_else_is_quoted() {
        let refusal = read(&["noatime", "hid\nden"]).unwrap_err();
        assert!(refusal.starts_with("m[1] has the character '\\n'") && !refusal.contains("hid"), "{refusal}");
        assert!(read(&["a b"]).unwrap_err().contains("' '"));
        assert!(read(&["context=\"x\""]).unwrap_err().contains("'\"'"));
        assert!(read(&[""]).unwrap_err().contains("m[0] is empty"));
        assert!(read(&["a,,b"]).unwrap_err().contains("empty part"));
        assert!(read(&[&"x".repeat(4097)]).unwrap_err().contains("4096 bytes"));
    }
}
