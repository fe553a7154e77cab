//! Shared stores that lie, fail, and race.

mod memory;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::engine::artifact::{Artifact, ArtifactFile};
use crate::engine::stage::Output;
use crate::engine::store::record::{encode, tests::record};
use crate::engine::store::{Record, Wanted};
use memory::Fault;
pub(in crate::engine) use memory::Memory;

/// A machine with a store of its own.
struct Machine {
    folder: tempfile::TempDir,
    store: Store,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        fs_err::create_dir_all(store.root()).unwrap();
        Self { folder, store }
    }

    /// Makes a result of some files here.
    fn result(&self, lr: f64, host: &str, files: &[(&str, &[u8])]) -> Record {
        let staging = self.folder.path().join("try");
        fs_err::create_dir_all(staging.join("table")).unwrap();
        for (path, bytes) in files {
            fs_err::write(staging.join("table").join(path), bytes).unwrap();
        }
        let outputs = [Output::new("table", "table")];
        let (outputs, stats) = (self.store)
            .commit_outputs(&staging, &outputs, &self.store)
            .unwrap();
        let mut record = record(lr);
        (record.outputs, record.stats) = (outputs, stats);
        record.provenance.host = host.to_owned();
        record.provenance.user = "ada".to_owned();
        record.provenance.started = "2026-11-30T10:00:00.5Z".to_owned();
        record.provenance.numerics = "cpu/2".to_owned();
        self.store.write_record(&record).unwrap();
        record
    }

    fn fetch(&self, remote: &Remote, record: &Record) -> Result<Found, RemoteError> {
        remote.fetch(&self.store, &record.fingerprint, &wanted(), &|_, _| {})
    }

    fn send(&self, remote: &Remote, record: &Record) -> Result<Sent, RemoteError> {
        remote.send(&self.store, record, None, &|_, _| {})
    }

    fn has(&self, record: &Record) -> bool {
        let there = self.store.read_record(&record.fingerprint, None).unwrap();
        there.is_some_and(|mut there| self.store.check_record(&mut there, true).is_ok())
    }

    /// Nothing of what was refused is left.
    #[track_caller]
    fn has_nothing(&self) {
        assert_eq!(self.store.objects().unwrap(), []);
        assert!(self.store.read_records().0.is_empty());
    }
}

fn wanted() -> Wanted {
    Wanted {
        class: "cpu/2".to_owned(),
        exact: false,
        outputs: vec![("table".to_owned(), "table".to_owned())],
    }
}

fn key_of(record: &Record, at: usize) -> String {
    object_key(&record.outputs["table"].files[at].digest)
}

#[test]
fn a_result_goes_and_comes_with_a_request_for_each_object_and_record() {
    let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
    let made = here.result(0.1, "n1", &[("a", b"one"), ("b", b"two"), ("c", b"one")]);
    assert_eq!(here.send(&memory.remote(), &made).unwrap(), Sent::First);
    let sent = memory.requests();
    let (last, objects) = sent.split_last().unwrap();
    assert!(last.starts_with("create records/"), "{sent:?}");
    // The record and two objects are looked for, the objects written; then the order is probed for: two creations, a read
    // and a removal.
    let count = |what: &str| {
        objects
            .iter()
            .filter(|request| request.starts_with(what))
            .count()
    };
    let counts = ["read records/", "size objects/", "write objects/", "probe"].map(count);
    assert_eq!((counts, objects.len()), ([1, 2, 2, 2], 9), "{sent:?}");

    let remote = memory.remote();
    let Ok(Found::Result(by)) = there.fetch(&remote, &made) else {
        panic!("nothing was found");
    };
    assert_eq!(made_by(&by), "made by ada on n1 at 2026-11-30T10:00:00Z");
    assert!(there.has(&made));
    assert_eq!(memory.requests().len(), 3);
    let copy = there
        .store
        .read_record(&made.fingerprint, None)
        .unwrap()
        .unwrap();
    assert_eq!(copy.outputs, made.outputs);
    // What was fetched needs no hashing before it is used.
    let object = &copy.outputs["table"].files[0].digest;
    let glance = there.store.glance_at_object(object, copy.stats.get(object));
    assert_eq!(glance.unwrap(), None);
    // Sent back by who fetched it: nothing is written but what is compared.
    assert_eq!(there.send(&remote, &copy).unwrap(), Sent::First);
    assert!(
        !memory
            .requests()
            .iter()
            .any(|request| request.starts_with("write"))
    );
    // One for which there is nothing: a single request.
    let other = record(0.2);
    assert_eq!(there.fetch(&remote, &other).unwrap(), Found::Nothing);
    assert_eq!(memory.requests().len(), 1);
}

#[test]
fn of_sixteen_writers_at_once_one_is_first_and_the_others_know() {
    for overwrites in [false, true] {
        let memory = Memory::default();
        memory.with(|state| state.overwrites = overwrites);
        let writers: Vec<_> = (0..16).map(|_| Machine::new()).collect();
        let sent: Vec<Sent> = std::thread::scope(|scope| {
            let threads: Vec<_> = (writers.iter().enumerate())
                .map(|(at, writer)| {
                    let remote = memory.remote();
                    let bytes = format!("result {}", at % 4);
                    scope.spawn(move || {
                        let host = format!("n{at}");
                        let made = writer.result(0.1, &host, &[("a", bytes.as_bytes())]);
                        writer.send(&remote, &made).unwrap()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let first = sent.iter().filter(|sent| **sent == Sent::First).count();
        let reader = Machine::new();
        let Found::Result(made) = reader.fetch(&memory.remote(), &record(0.1)).unwrap() else {
            panic!("nothing is there");
        };
        assert_eq!(
            memory.remote().first_wins(&reader.store, true).unwrap(),
            !overwrites
        );
        if overwrites {
            // Who wrote before another could not see it; the one that stays was told that it did.
            assert!(first >= 1);
            continue;
        }
        assert_eq!(first, 1, "{sent:?}");
        let at = sent.iter().position(|sent| *sent == Sent::First).unwrap();
        assert_eq!(made.host, format!("n{at}"));
        for (other, sent) in sent.iter().enumerate() {
            match sent {
                Sent::First => {}
                Sent::Same => assert_eq!(other % 4, at % 4),
                Sent::Other(by) => assert!(other % 4 != at % 4 && by.host == made.host),
                Sent::Instead(_) => panic!("nothing is damaged"),
            }
        }
    }
}

#[test]
fn a_server_that_overwrites_is_found_out_and_what_is_there_is_compared() {
    let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
    memory.with(|state| state.overwrites = true);
    let remote = memory.remote();
    let made = here.result(0.1, "n1", &[("a", b"one")]);
    assert_eq!(here.send(&remote, &made).unwrap(), Sent::First);
    assert!(remote.is_last_winning());
    let other = there.result(0.1, "n2", &[("a", b"other")]);
    let Sent::Other(by) = there.send(&memory.remote(), &other).unwrap() else {
        panic!("it was overwritten");
    };
    assert_eq!(by.host, "n1");
    assert!(memory.with(|state| !state.names.keys().any(|key| key.starts_with("probes/"))));
}

#[test]
fn what_became_of_a_record_is_read_where_the_answer_does_not_tell() {
    for fault in [Fault::AnswerLost, Fault::Conflict, Fault::Away] {
        let (memory, here) = (Memory::default(), Machine::new());
        let made = here.result(0.1, "n1", &[("a", b"one")]);
        memory.fault("create", fault.clone());
        assert_eq!(
            here.send(&memory.remote(), &made).unwrap(),
            Sent::First,
            "{fault:?}"
        );
        let reader = Machine::new();
        reader.fetch(&memory.remote(), &made).unwrap();
        assert!(reader.has(&made));
    }
    // One that says for ever that something is there, and has nothing.
    let (memory, here) = (Memory::default(), Machine::new());
    let made = here.result(0.1, "n1", &[("a", b"one")]);
    (0..10).for_each(|_| memory.fault("create", Fault::Conflict));
    let error = here.send(&memory.remote(), &made).unwrap_err();
    assert!(error.to_string().contains("it is not"), "{error}");
}

#[test]
fn nothing_of_a_damaged_object_counts_and_who_has_the_bytes_heals_it() {
    let longer = |bytes: &mut Vec<u8>| bytes.push(0);
    let shorter = |bytes: &mut Vec<u8>| bytes.truncate(1);
    let altered = |bytes: &mut Vec<u8>| bytes[0] ^= 1;
    for (at, change) in [longer, shorter, altered].into_iter().enumerate() {
        let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
        let made = here.result(0.1, "n1", &[("a", b"some bytes")]);
        here.send(&memory.remote(), &made).unwrap();
        memory.change(&key_of(&made, 0), change);
        let remote = memory.remote();
        let error = there.fetch(&remote, &made).unwrap_err();
        let RemoteError::Damaged(what) = error else {
            panic!("{error}");
        };
        assert!(what.starts_with("s3://bucket/lab/objects/"), "{what}");
        there.has_nothing();
        // It computes the result itself, and sends it.
        let again = there.result(0.1, "n2", &[("a", b"some bytes")]);
        assert_eq!(there.send(&remote, &again).unwrap(), Sent::Same, "{at}");
        let third = Machine::new();
        third.fetch(&memory.remote(), &made).unwrap();
        assert!(third.has(&made));
    }
    // One that is gone; and where the machine that found it out made other bytes, its own result takes the place.
    let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
    let made = here.result(0.1, "n1", &[("a", b"some bytes")]);
    here.send(&memory.remote(), &made).unwrap();
    memory.with(|state| state.names.remove(&key_of(&made, 0)));
    let remote = memory.remote();
    there.fetch(&remote, &made).unwrap_err();
    let other = there.result(0.1, "n2", &[("a", b"other bytes")]);
    let Ok(Sent::Instead(by)) = there.send(&remote, &other) else {
        panic!("the result that nobody can read stays");
    };
    assert_eq!(by.host, "n1");
    let third = Machine::new();
    third.fetch(&memory.remote(), &made).unwrap();
    assert!(third.has(&other));
}

#[test]
fn every_flipped_byte_and_every_truncation_of_a_record_shows() {
    let (memory, here) = (Memory::default(), Machine::new());
    let made = here.result(0.1, "n1", &[("a", b"one")]);
    here.send(&memory.remote(), &made).unwrap();
    let key = record_key(&made.fingerprint, None);
    let good = memory.with(|state| state.names[&key].0.clone());
    let there = Machine::new();
    for at in 0..good.len() {
        for bad in [good[..at].to_vec(), {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            bad
        }] {
            memory.change(&key, |bytes| *bytes = bad);
            let found = there.fetch(&memory.remote(), &made);
            assert!(
                matches!(found, Err(RemoteError::Damaged(_))),
                "byte {at}: {found:?}"
            );
        }
    }
    there.has_nothing();
    // Who has the result replaces it.
    assert_eq!(here.send(&memory.remote(), &made).unwrap(), Sent::First);
    there.fetch(&memory.remote(), &made).unwrap();
    assert!(there.has(&made));
}

#[test]
fn a_record_that_is_forged_is_refused_whatever_its_digest() {
    let here = Machine::new();
    let made = here.result(0.1, "n1", &[("a", b"one"), ("b", b"two")]);
    let of = |change: &dyn Fn(&mut Vec<ArtifactFile>)| {
        let mut record = made.clone();
        let output = record.outputs.get_mut("table").unwrap();
        change(&mut output.files);
        *output = Artifact::new(&output.kind, output.files.clone());
        record
    };
    let with = |change: &dyn Fn(&mut Record)| {
        let mut record = made.clone();
        change(&mut record);
        record
    };
    let another = record(0.2);
    let forged = [
        (
            "belongs to",
            with(&|record| record.fingerprint = another.fingerprint),
        ),
        (
            "belongs to",
            with(&|record| record.manifest = another.manifest.clone()),
        ),
        ("belongs to", another.clone()),
        ("outside", of(&|files| files[0].path = "../../a".to_owned())),
        ("outside", of(&|files| files[0].path = "/etc/a".to_owned())),
        ("one path", of(&|files| files[1].path = "a".to_owned())),
        ("one path", of(&|files| files[1].path = "a/b".to_owned())),
        (
            "is a path",
            with(&|record| {
                let output = record.outputs.swap_remove("table").unwrap();
                record.outputs.insert("../x".to_owned(), output);
            }),
        ),
        (
            "another digest",
            with(&|record| {
                record.outputs.get_mut("table").unwrap().digest = Digest::of(b"x");
            }),
        ),
        ("other outputs", with(&|record| record.outputs.clear())),
        (
            "other outputs",
            with(&|record| {
                let output = record.outputs.swap_remove("table").unwrap();
                record.outputs.insert("rows".to_owned(), output);
            }),
        ),
        (
            "other outputs",
            with(&|record| {
                let output = record.outputs.get_mut("table").unwrap();
                *output = Artifact::new("figure", output.files.clone());
            }),
        ),
        ("shorter", of(&|files| files[0].size = 1 << 20)),
        ("longer", of(&|files| files[0].size = 1)),
        // More than any disk has; the digest of an artifact does not tell of sizes.
        ("another size", of(&|files| files[0].size = u64::MAX)),
    ];
    for (what, record) in forged {
        let memory = Memory::default();
        here.send(&memory.remote(), &made).unwrap();
        let text = encode(&serde_json::to_string(&record).unwrap());
        let key = record_key(&made.fingerprint, None);
        memory.change(&key, |bytes| *bytes = text.into_bytes());
        let there = Machine::new();
        let error = there.fetch(&memory.remote(), &made).unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert!(there.store.read_records().0.is_empty(), "{what}");
    }
}

/// The digest of an artifact does not tell of sizes.
#[test]
fn a_false_size_shows_where_the_object_is_here_and_is_healed_by_who_knows() {
    let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
    let made = here.result(0.1, "n1", &[("a", b"one")]);
    here.send(&memory.remote(), &made).unwrap();
    let mut forged = made.clone();
    forged.outputs.get_mut("table").unwrap().files[0].size = 7;
    let text = encode(&serde_json::to_string(&forged).unwrap());
    memory.change(&record_key(&made.fingerprint, None), |bytes| {
        *bytes = text.into_bytes();
    });
    there.result(0.2, "n2", &[("a", b"one")]);
    let error = there.fetch(&memory.remote(), &made).unwrap_err();
    assert!(error.to_string().contains("another size"), "{error}");
    assert_eq!(here.send(&memory.remote(), &made).unwrap(), Sent::First);
    there.fetch(&memory.remote(), &made).unwrap();
    assert!(there.has(&made));
}

#[test]
fn the_order_is_probed_for_with_little_rights_and_on_poor_servers() {
    let machine = Machine::new();
    let first_wins = |memory: &Memory| memory.remote().first_wins(&machine.store, true);
    let memory = Memory::default();
    memory.with(|state| state.denies_removing = true);
    assert_eq!(first_wins(&memory), Ok(true));
    let memory = Memory::default();
    memory.with(|state| state.knows_no_creation = true);
    assert_eq!(first_wins(&memory), Ok(false));
    // Its first request is repeated on the way, and refused for its own effect.
    let memory = Memory::default();
    memory.fault("probe", Fault::Twice);
    assert_eq!(first_wins(&memory), Ok(true));
    // What was noted of it does not outlive a probe that says otherwise.
    let memory = Memory::default();
    assert_eq!(first_wins(&memory), Ok(true));
    memory.with(|state| state.overwrites = true);
    assert_eq!(memory.remote().first_wins(&machine.store, false), Ok(true));
    assert_eq!(first_wins(&memory), Ok(false));
    assert_eq!(memory.remote().first_wins(&machine.store, false), Ok(false));
    // One that knows no creation is written to all the same.
    let memory = Memory::default();
    memory.with(|state| state.knows_no_creation = true);
    let made = machine.result(0.1, "n1", &[("a", b"one")]);
    assert_eq!(machine.send(&memory.remote(), &made).unwrap(), Sent::First);
    let there = Machine::new();
    there.fetch(&memory.remote(), &made).unwrap();
    assert!(there.has(&made));
}

#[test]
fn all_that_is_there_is_read_and_what_is_damaged_named() {
    let (memory, here) = (Memory::default(), Machine::new());
    let one = here.result(0.1, "n1", &[("a", b"one"), ("none", b"")]);
    let two = here.result(0.2, "n1", &[("a", b"two")]);
    let three = here.result(0.3, "n1", &[("a", b"three")]);
    for record in [&one, &two, &three] {
        here.send(&memory.remote(), record).unwrap();
    }
    let verified = || {
        let remote = memory.remote();
        let listed = remote.list().unwrap();
        let damaged = remote.verify(&listed, &|_| {}).unwrap();
        damaged.into_keys().collect::<Vec<String>>()
    };
    assert_eq!(verified(), [""; 0]);
    // What is answered wrongly once is not damaged.
    for fault in [Fault::Altered, Fault::Cut] {
        memory.fault("read", fault.clone());
        memory.fault("read objects", fault);
        assert_eq!(verified(), [""; 0]);
    }
    memory.change(&key_of(&one, 0), |bytes| bytes[0] ^= 1);
    memory.change(&record_key(&two.fingerprint, None), Vec::clear);
    memory.with(|state| state.names.remove(&key_of(&three, 0)));
    let mut wrong = [
        key_of(&one, 0),
        record_key(&two.fingerprint, None),
        record_key(&three.fingerprint, None),
    ];
    wrong.sort();
    assert_eq!(verified(), wrong);
    memory.remote().remove(wrong.to_vec()).unwrap();
    let remote = memory.remote();
    let listed = remote.list().unwrap();
    for record in [&one, &two, &three] {
        assert!(!listed.has(record));
        remote
            .send(&here.store, record, Some(&listed), &|_, _| {})
            .unwrap();
    }
    assert_eq!(verified(), [""; 0]);
}

#[test]
fn a_transfer_that_broke_off_goes_on_from_there() {
    let (memory, here, there) = (Memory::default(), Machine::new(), Machine::new());
    let large: Vec<u8> = (0..40 << 20).map(|at: u32| (at >> 8) as u8).collect();
    let made = here.result(0.1, "n1", &[("a", &large)]);
    here.send(&memory.remote(), &made).unwrap();
    let failing = memory.clone();
    let remote = memory.remote();
    let told = Mutex::new(Vec::new());
    let tell = |done, total| {
        assert_eq!(total, large.len() as u64);
        let mut told = told.lock().unwrap();
        if told.len() == 1 {
            failing.fault("read", Fault::Away);
        }
        told.push(done);
    };
    let broken = remote.fetch(&there.store, &made.fingerprint, &wanted(), &tell);
    assert!(broken.is_err(), "{:?}", told.lock().unwrap());
    memory.requests();
    there.fetch(&memory.remote(), &made).unwrap();
    // The record, the size, and the two pieces that are missing.
    assert_eq!(memory.requests().len(), 4);
    assert!(there.has(&made));
}

/// A line that alters bytes once, and a disk that lost some of those that came before.
#[test]
fn what_seems_damaged_is_read_once_more_before_it_is_believed() {
    let (memory, here) = (Memory::default(), Machine::new());
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| (at >> 8) as u8).collect();
    let made = here.result(0.1, "n1", &[("a", b"one"), ("b", &large)]);
    here.send(&memory.remote(), &made).unwrap();
    for fault in [Fault::Altered, Fault::Cut, Fault::Gone] {
        let there = Machine::new();
        let remote = memory.remote();
        memory.fault("read objects", fault.clone());
        there
            .fetch(&remote, &made)
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(there.has(&made));
        assert!(!remote.is_damaged(&key_of(&made, 0)) && !remote.is_damaged(&key_of(&made, 1)));
    }
    let there = Machine::new();
    let remote = memory.remote();
    let partial = remote.notes(&there.store).join("partial");
    fs_err::create_dir_all(&partial).unwrap();
    let name = made.outputs["table"].files[1].digest.to_string();
    fs_err::write(partial.join(name), vec![0; 100]).unwrap();
    there.fetch(&remote, &made).unwrap();
    assert!(there.has(&made));
    assert_eq!(std::fs::read_dir(&partial).unwrap().count(), 0);
    // Nor does what another machine made otherwise take the place of what was twice read wrongly.
    let small = here.result(0.2, "n1", &[("a", b"small")]);
    here.send(&memory.remote(), &small).unwrap();
    memory.fault("read objects", Fault::Altered);
    memory.fault("read objects", Fault::Altered);
    let other = Machine::new();
    let remote = memory.remote();
    let refused = other.fetch(&remote, &small);
    assert!(
        matches!(refused, Err(RemoteError::Damaged(_))),
        "{refused:?}"
    );
    let record = other.result(0.2, "n2", &[("a", b"other")]);
    assert!(matches!(other.send(&remote, &record), Ok(Sent::Other(_))));
}

#[test]
fn which_result_is_first_is_another_matter_in_each_store() {
    let of = |class: &str, exact| Wanted {
        class: class.to_owned(),
        exact,
        ..wanted()
    };
    let (memory, here) = (Memory::default(), Machine::new());
    let first = here.result(0.1, "n1", &[("a", b"one")]);
    let mut beside = here.result(0.1, "n2", &[("a", b"two")]);
    beside.provenance.numerics = "cuda-sm90/1".to_owned();
    beside.beside = true;
    here.store.write_record(&first).unwrap();
    here.store.write_record(&beside).unwrap();
    // The one that stands beside another here is the first there.
    let remote = memory.remote();
    assert_eq!(here.send(&remote, &beside).unwrap(), Sent::First);
    assert_eq!(here.send(&remote, &first).unwrap(), Sent::First);
    assert_eq!(here.send(&remote, &first).unwrap(), Sent::First);
    let listed = remote.list().unwrap();
    assert!(
        listed
            .records
            .contains_key(&format!("{}.json", first.fingerprint))
    );
    assert!(
        listed
            .records
            .contains_key(&format!("{}.cpu-2.json", first.fingerprint))
    );
    assert!(listed.has(&first) && listed.has(&beside));
    let host = |machine: &Machine, wanted: &Wanted| {
        let found = remote.fetch(&machine.store, &first.fingerprint, wanted, &|_, _| {});
        let Ok(Found::Result(made)) = found else {
            assert_eq!(found, Ok(Found::Nothing));
            return None;
        };
        // It is what counts here from now on.
        let counts = machine.store.find_record(&first.fingerprint, &wanted.class);
        assert_eq!(counts.unwrap().unwrap().provenance.host, made.host);
        Some(made.host)
    };
    assert_eq!(
        host(&Machine::new(), &of("cpu/2", false)).as_deref(),
        Some("n1")
    );
    assert_eq!(
        host(&Machine::new(), &of("cuda-sm90/1", true)).as_deref(),
        Some("n2")
    );
    assert_eq!(
        host(&Machine::new(), &of("cuda-sm80/1", false)).as_deref(),
        Some("n2")
    );
    assert_eq!(host(&Machine::new(), &of("cuda-sm80/1", true)), None);
    let both = Machine::new();
    assert_eq!(host(&both, &of("cpu/2", true)).as_deref(), Some("n1"));
    assert_eq!(host(&both, &of("cuda-sm90/1", true)).as_deref(), Some("n2"));
    assert_eq!(host(&both, &of("cpu/2", true)).as_deref(), Some("n1"));
}

#[test]
fn a_collection_keeps_what_is_needed_recent_or_sent_meanwhile() {
    let (memory, here) = (Memory::default(), Machine::new());
    let remote = memory.remote();
    let kept = here.result(0.1, "n1", &[("a", b"kept"), ("b", b"of both")]);
    let dead = here.result(0.2, "n1", &[("a", b"dead"), ("b", b"of both")]);
    let spared = here.result(0.3, "n1", &[("a", b"spared")]);
    for record in [&kept, &dead, &spared] {
        here.send(&remote, record).unwrap();
    }
    memory.with(|state| {
        let stray = vec![1; 10];
        let name = object_key(&Digest::of(&stray));
        state.names.insert(name, (stray, SystemTime::now()));
        let old = SystemTime::now() - Duration::from_secs(1000);
        state
            .names
            .values_mut()
            .for_each(|(_, modified)| *modified = old);
        let name = object_key(&Digest::of(b"under way"));
        state
            .names
            .insert(name, (b"under way".to_vec(), SystemTime::now()));
    });
    memory.change(&record_key(&spared.fingerprint, None), Vec::clear);
    let listed = remote.list().unwrap();
    assert_eq!((listed.records.len(), listed.objects.len()), (3, 6));
    let read = || remote.summaries(&listed).unwrap();
    let wanted = [kept.fingerprint].into();
    let now = SystemTime::now() - Duration::from_secs(100);
    // Nothing is old enough.
    let long_ago = SystemTime::now() - Duration::from_secs(10_000);
    let none = Remote::garbage(&listed, read(), &wanted, long_ago);
    assert!(none.results.is_empty() && none.objects.is_empty() && none.damaged.is_empty());
    // One that is damaged and needed stays, and may need anything.
    let needs = [kept.fingerprint, spared.fingerprint].into();
    let careful = Remote::garbage(&listed, read(), &needs, now);
    assert_eq!(
        (
            careful.results.len(),
            careful.damaged.len(),
            careful.objects.len()
        ),
        (1, 0, 0)
    );
    let garbage = Remote::garbage(&listed, read(), &wanted, now);
    assert_eq!(garbage.results.len(), 1);
    assert_eq!(garbage.damaged.len(), 1);
    assert_eq!(garbage.objects.len(), 3);
    // Meanwhile somebody sends a result with an object that was found to be garbage.
    let fresh = here.result(0.4, "n3", &[("a", b"spared")]);
    here.send(&remote, &fresh).unwrap();
    // And somebody computes one anew that is being taken away, under the same name.
    memory.with(|state| state.back = Some(dead.clone()));
    assert_eq!(remote.collect(&garbage).unwrap(), 2);
    let there = Machine::new();
    for (record, stays) in [
        (&kept, true),
        (&fresh, true),
        (&dead, true),
        (&spared, false),
    ] {
        let found = there.fetch(&remote, record).unwrap();
        assert_eq!(found != Found::Nothing, stays);
    }
    // Two each, one of them of both, the fresh one's, and that which is under way.
    assert_eq!(remote.list().unwrap().objects.len(), 5);
}

#[test]
fn a_folder_is_a_bucket_where_the_first_writer_wins() {
    let shared = tempfile::tempdir().unwrap();
    let address = |folder: &std::path::Path| RemoteSettings {
        address: format!("file://{}", folder.display()),
        ..RemoteSettings::default()
    };
    let remote = Remote::open(&address(shared.path()), &Arc::default()).unwrap();
    let (here, there) = (Machine::new(), Machine::new());
    let large = vec![7; 20 << 20];
    let made = here.result(
        0.1,
        "n1",
        &[("a", b"one"), ("large", &large), ("none", b"")],
    );
    assert_eq!(here.send(&remote, &made).unwrap(), Sent::First);
    let other = there.result(0.1, "n2", &[("a", b"other")]);
    assert!(matches!(there.send(&remote, &other), Ok(Sent::Other(_))));
    let third = Machine::new();
    third.fetch(&remote, &made).unwrap();
    assert!(third.has(&made));
    assert!(remote.list().unwrap().has(&made));
    assert_eq!(remote.list().unwrap().leftovers, []);
    // A disk that is not mounted is no empty store.
    let gone = Remote::open(&address(&shared.path().join("gone")), &Arc::default()).unwrap();
    let error = third.fetch(&gone, &made).unwrap_err();
    assert!(
        error.is_about_reach() && error.to_string().contains("mounted"),
        "{error}"
    );
    assert!(third.send(&gone, &made).is_err() && !shared.path().join("gone").exists());
    for bad in ["relative/path", "file://relative", "file:///a%20b"] {
        let settings = RemoteSettings {
            address: bad.to_owned(),
            ..RemoteSettings::default()
        };
        assert!(Remote::open(&settings, &Arc::default()).is_err(), "{bad}");
    }
}

#[test]
fn many_are_asked_at_once_and_answered_in_order() {
    let things: Vec<usize> = (0..100).collect();
    let at_once = AtomicUsize::new(0);
    let most = AtomicUsize::new(0);
    let answers = in_parallel(&things, AT_ONCE, |thing| {
        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        at_once.fetch_sub(1, Ordering::SeqCst);
        thing * 2
    });
    assert_eq!(answers, (0..100).map(|thing| thing * 2).collect::<Vec<_>>());
    assert!((2..=AT_ONCE).contains(&most.load(Ordering::SeqCst)));
}
