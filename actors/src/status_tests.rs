//! The writer against an in-memory API store.

use super::*;
use crate::clock::Clock;
use crate::node::NodeConfig;
use crate::testing::{Ear, pass, paused};
use actix::Addr;
use meshstor_api::{MeshStorNode, crds};
use meshstor_kernel::id::{ClusterId, NodeName};
use meshstor_kernel::sim::{Config, World};
use meshstor_memstore::{Fault, Link, Outcome, Schema, Store, Verb};

struct Rig {
    store: Store,
    board: Board,
    writer: Addr<StatusWriter>,
}

impl Rig {
    fn new() -> Rig {
        let store = Store::builder().schemas(crds().iter().filter_map(Schema::from_crd)).build();
        let world = World::new(1, Config::default());
        world.add_node("a", &[]);
        let (_, poke, _) = Ear::listen();
        let cluster = ClusterId(uuid::Uuid::nil());
        let client = store.client_for("a");
        let config = NodeConfig {
            node: NodeName("a".into()),
            cluster,
            fabric: "default".into(),
            clock: Clock::default(),
            speeds: Default::default(),
            keep_caches: false,
        };
        let env = Env::new(world.kernel("a"), client, config, poke);
        let board = Board::default();
        let writer = StatusWriter::new(env, board.clone()).start();
        Rig { store, board, writer }
    }

    fn put(&self, put: Put) {
        self.board.put(Object::Node("a".into()), put);
        // A full mailbox holds a poke already.
        let _ = self.writer.try_send(Poke);
    }

    fn node(&self) -> Value {
        self.store.get("meshstornodes", "", "a").map(|object| (*object).clone()).unwrap_or_default()
    }

    fn patches(&self) -> u32 {
        let counters = self.store.counters();
        counters.requests.iter().filter(|((_, verb, _), _)| *verb == Verb::Patch).map(|(_, n)| *n as u32).sum()
    }
}

fn kernel(version: &str) -> Put {
    Put { fields: json!({"kernel": version}), create: Some(json!({})), ..Put::default() }
}

fn ready(status: bool) -> Said {
    Said { type_: "Ready", status, reason: "Healthy".into(), message: String::new() }
}

#[test]
fn absent_objects_are_created_and_kept_out_of_backups() {
    paused(async {
        let rig = Rig::new();
        rig.put(Put { conditions: vec![ready(true)], ..kernel("6.12") });
        pass(1.0).await;
        let node = rig.node();
        assert_eq!(node["status"]["kernel"], "6.12");
        assert_eq!(node["metadata"]["labels"][NO_BACKUP_LABEL], "true");
        assert_eq!(node["status"]["conditions"][0]["status"], "True");
    });
}

#[test]
fn what_stands_there_already_is_not_written_again() {
    paused(async {
        let rig = Rig::new();
        rig.put(kernel("6.12"));
        pass(60.0).await;
        let before = rig.patches();
        rig.put(kernel("6.12"));
        pass(3600.0).await;
        assert_eq!(rig.patches(), before);
    });
}

#[test]
fn the_last_value_wins() {
    paused(async {
        let rig = Rig::new();
        for version in 0..100 {
            rig.put(kernel(&version.to_string()));
        }
        pass(2.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "99");
        assert!(rig.patches() <= 3, "{}", rig.patches());
    });
}

#[test]
fn telemetry_alone_is_written_six_times_a_minute() {
    paused(async {
        let rig = Rig::new();
        for beat in 0..600 {
            rig.put(Put { telemetry: json!({"heartbeat": beat.to_string()}), ..kernel("6.12") });
            pass(0.1).await;
        }
        assert!((6..=8).contains(&rig.patches()), "{}", rig.patches());
    });
}

#[test]
fn transition_times_follow_the_status_alone_and_old_conditions_go() {
    paused(async {
        let rig = Rig::new();
        rig.put(Put { conditions: vec![ready(false), Said { type_: "Limited", ..ready(true) }], ..kernel("1") });
        pass(1.0).await;
        let first = rig.node()["status"]["conditions"].clone();
        rig.put(Put { conditions: vec![ready(false)], ..kernel("2") });
        pass(1.0).await;
        let second = rig.node()["status"]["conditions"].clone();
        assert_eq!((first.as_array().unwrap().len(), second.as_array().unwrap().len()), (2, 1));
        assert_eq!(first[0]["lastTransitionTime"], second[0]["lastTransitionTime"]);
    });
}

#[test]
fn a_server_that_is_away_gets_the_newest_value_when_it_is_back() {
    paused(async {
        let rig = Rig::new();
        rig.store.faults().set_link("a", Link::Hang);
        rig.put(kernel("1"));
        pass(30.0).await;
        rig.put(kernel("2"));
        rig.store.faults().set_link("a", Link::Up);
        pass(30.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "2");
    });
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    paused(async {
        let rig = Rig::new();
        for outcome in [Outcome::Reset, Outcome::Status(500), Outcome::Status(409), Outcome::Hang] {
            rig.store.faults().inject(Fault::after_effect(outcome).client("a").verb(Verb::Patch));
        }
        rig.put(kernel("1"));
        pass(60.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "1");
    });
}

#[test]
fn what_somebody_else_wrote_over_is_written_again() {
    paused(async {
        let rig = Rig::new();
        rig.put(kernel("1"));
        pass(1.0).await;
        let nodes: Api<MeshStorNode> = Api::all(rig.store.client_for("admin"));
        let other = Patch::Merge(json!({"status": {"kernel": "x"}}));
        nodes.patch_status("a", &PatchParams::default(), &other).await.unwrap();
        assert!(rig.board.disagrees(&Object::Node("a".into()), &rig.node()["status"]));
        rig.writer.try_send(Overwritten(Object::Node("a".into()))).unwrap();
        pass(1.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "1");
        assert!(!rig.board.disagrees(&Object::Node("a".into()), &rig.node()["status"]));
    });
}

#[test]
fn the_writer_ends_with_the_board() {
    paused(async {
        let rig = Rig::new();
        let Rig { board, writer, .. } = rig;
        drop(board);
        pass(2.0).await;
        assert!(!writer.connected());
    });
}

#[test]
fn another_object_of_the_same_name_is_not_written_to() {
    paused(async {
        let rig = Rig::new();
        rig.put(kernel("6.12"));
        pass(1.0).await;
        let uid = rig.node()["metadata"]["uid"].as_str().unwrap().to_string();
        rig.put(Put { uid: Some("of one that was deleted".into()), ..kernel("of another one") });
        pass(60.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "6.12");
        rig.put(Put { uid: Some(uid), ..kernel("6.18") });
        pass(60.0).await;
        assert_eq!(rig.node()["status"]["kernel"], "6.18");
    });
}
