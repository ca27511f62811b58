//! Our `csi.proto` says what the official one says.
//!
//! The official file is fetched as the Go module it is published in, and compared as a descriptor: every name, type,
//! number, label, option and extension, but no comments. Needs the Go tool and a module proxy; without them it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::path::{Path, PathBuf};
use std::process::Command;

use protox::Compiler;
use protox::prost_reflect::prost::Message;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, Value};

const MODULE: &str = "github.com/container-storage-interface/spec@v1.12.0";
/// The module's checksum, as a go.sum file would pin it.
const SUM: &str = "h1:zrFOEqpR5AghNaaDG4qyedwPBqU2fU0dWjLQMP/azK0=";

/// The directory of the official specification.
fn official() -> PathBuf {
    // Away from any go.mod, so that nothing but the version above decides what is fetched.
    let elsewhere = tempfile::tempdir().unwrap();
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(elsewhere.path())
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs Go: `go mod download {MODULE}` fetches csi.proto, but go did not start: {error}")
        });
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let answer: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("`go mod download -json {MODULE}` answered no JSON ({error}): {text}{errors}"));
    let dir = answer["Dir"].as_str().unwrap_or_else(|| panic!("go could not download {MODULE}: {text}{errors}"));
    assert_eq!(answer["Sum"], SUM, "the module is not the one that this test was written for");
    PathBuf::from(dir)
}

/// The FileDescriptorProto of `csi.proto` in a directory, extensions of options included, without comments.
fn descriptor(directory: &Path) -> DynamicMessage {
    let mut compiler = Compiler::new([directory]).unwrap();
    compiler.include_source_info(false).include_imports(true);
    compiler.open_file("csi.proto").unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    // Read with a pool that knows the extensions; the plain prost types would drop alpha_field and csi_secret.
    let encoded = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(encoded.as_slice()).unwrap();
    let file_type = pool.get_message_by_name("google.protobuf.FileDescriptorProto").expect("csi.proto imports it");
    let file = pool.files().find(|file| file.name() == "csi.proto").unwrap();
    let mut message = DynamicMessage::decode(file_type, file.encode_to_vec().as_slice()).unwrap();
    message.clear_field_by_name("source_code_info");
    message
}

/// Every leaf of a message as "path = value", so that a difference can be shown as a line.
fn lines(path: &str, value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Message(message) => {
            out.push(format!("{path} is set"));
            for (field, value) in message.fields() {
                lines(&format!("{path}.{}", field.name()), value, out);
            }
            for (extension, value) in message.extensions() {
                lines(&format!("{path}.({})", extension.full_name()), value, out);
            }
            assert_eq!(message.unknown_fields().count(), 0, "{path} has fields that nobody can compare");
        }
        Value::List(list) => {
            for (index, value) in list.iter().enumerate() {
                lines(&format!("{path}[{index}{}]", name_of(value)), value, out);
            }
        }
        leaf => out.push(format!("{path} = {leaf:?}")),
    }
}

fn name_of(value: &Value) -> String {
    match value {
        Value::Message(message) => match message.get_field_by_name("name").as_deref() {
            Some(Value::String(name)) => format!(" {name}"),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

#[test]
fn our_csi_proto_equals_the_official_one() {
    let ours = descriptor(&Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"));
    let theirs = descriptor(&official());
    let (mut our_lines, mut their_lines) = (Vec::new(), Vec::new());
    lines("csi.proto", &Value::Message(ours.clone()), &mut our_lines);
    lines("csi.proto", &Value::Message(theirs.clone()), &mut their_lines);
    // A comparison of two empty lists would prove nothing.
    assert!(their_lines.len() > 2000, "only {} lines in the official descriptor", their_lines.len());
    assert!(their_lines.iter().any(|line| line.contains("(csi.v1.csi_secret)")));
    let only_ours: Vec<_> = our_lines.iter().filter(|line| !their_lines.contains(line)).collect();
    let only_theirs: Vec<_> = their_lines.iter().filter(|line| !our_lines.contains(line)).collect();
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "csi.proto differs from {MODULE}\nonly ours: {only_ours:#?}\nonly theirs: {only_theirs:#?}"
    );
    assert!(
        ours.encode_to_vec() == theirs.encode_to_vec(),
        "csi.proto differs from {MODULE} in the order of its parts"
    );
}

#[test]
fn all_five_services_are_there_with_all_their_methods() {
    let count = |service: &str| {
        meshstor_csi::proto::METHODS.iter().filter(|method| method.starts_with(&format!("/csi.v1.{service}/"))).count()
    };
    let services = ["Identity", "Controller", "GroupController", "SnapshotMetadata", "Node"];
    assert_eq!(services.map(count), [3, 15, 4, 2, 8]);
    assert_eq!(meshstor_csi::proto::METHODS.len(), 32);
}
