use std::{
    collections::BTreeMap,
    fs::{self},
    io::{self},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    abandoned::{self, *},
    append::*,
    config::*,
    error::*,
    frame::{self, Draft},
    layout,
    position::*,
    reader::*,
    record::*,
    segment,
    staging::Staged,
    writer::*,
};
use crate::mlflow::{
    artifact_path::ArtifactPath,
    key::Key,
    rewind::Rewind,
    run::{RunId, RunStatus},
};

fn start(run: RunId) -> Record {
    Record::RunStarted(RunStart {
        run,
        experiment: "e".into(),
        artifact_location: None,
        name: "n".into(),
        user: "u".into(),
        start_time: 1,
    })
}

fn rewound(run: RunId) -> Record {
    let (id, step, at) = (u64::MAX, 3, 1);
    let rewind = Rewind { id, step, at };
    Record::RunRewound { run, rewind }
}

fn deleted(run: RunId) -> Record {
    let path = ArtifactPath::parse("checkpoints/last.ckpt").unwrap();
    Record::ArtifactsDeleted { run, path }
}

fn metrics(run: RunId, step: i64) -> Record {
    let values = vec![(Key::parse("metric key", "loss").unwrap(), 0.5)];
    Record::Metrics {
        run,
        step,
        timestamp: step,
        values,
    }
}

fn append(journal: &Journal, record: Record) -> Result<Appended, JournalError> {
    append_all(journal, vec![record])
}

fn append_all(journal: &Journal, records: Vec<Record>) -> Result<Appended, JournalError> {
    journal.append(
        super::append::EncodedRecords::of(records)?,
        Admission::Bounded,
    )
}

/// Returns true where a caller that waits for room would continue at once.
fn has_room(journal: &Journal, room: Room) -> bool {
    futures_util::FutureExt::now_or_never(journal.wait_for_room(room)).is_some()
}

fn steps(entries: &[Placed]) -> Vec<i64> {
    let step = |placed: &Placed| match placed.entry.record {
        Record::Metrics { step, .. } => Some(step),
        _ => None,
    };
    entries.iter().filter_map(step).collect()
}

fn config(dir: &Path) -> JournalConfig {
    JournalConfig::new(dir, vec!["sqlite:////x.db".into()])
}

fn journal(dir: &Path) -> Arc<Journal> {
    Arc::new(Journal::create(config(dir)))
}

/// Returns the message of the journal after it has checked its folder.
fn maintained(journal: &Journal) -> String {
    loop {
        if let Some(told) = journal.maintain() {
            return told;
        }
        std::thread::yield_now();
    }
}

fn all_abandoned(dir: &Path) -> Vec<AbandonedJournal> {
    abandoned::lock_all(dir, |_| true)
}

fn read_all(reader: &mut Reader, end: Position) -> Vec<Placed> {
    let mut all = Vec::new();
    loop {
        let batch = reader.read(end).unwrap();
        if batch.entries.is_empty() {
            return all;
        }
        all.extend(batch.entries);
    }
}

#[test]
fn what_was_appended_is_read_in_order_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    let count = 200_000;
    for step in 0..count {
        append(&journal, metrics(run, step)).unwrap();
    }
    assert!(
        journal.end().position.segment > 1,
        "the test wants more than one segment"
    );
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    let all = read_all(&mut reader, journal.end().position);
    assert_eq!(steps(&all), (0..count).collect::<Vec<_>>());
    reader.advance(&all).unwrap();
    assert!(
        !layout::segment_path(&journal.dir(), 1).exists(),
        "delivered segments are removed"
    );
}

#[test]
fn a_reader_goes_on_where_the_saved_position_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append(&journal, start(run)).unwrap();
    append(&journal, metrics(run, 1)).unwrap();
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    let first = reader.read(journal.end().position).unwrap().entries;
    reader.advance(&first).unwrap();
    append(&journal, metrics(run, 2)).unwrap();
    drop((reader, journal));

    let taken = all_abandoned(dir.path()).remove(0);
    let mut again = taken.reader(0);
    assert_eq!(
        again.progress().open_runs.keys().collect::<Vec<_>>(),
        [&run.to_string()]
    );
    assert_eq!(steps(&read_all(&mut again, taken.end)), [2]);
}

#[test]
fn a_journal_is_abandoned_when_its_lock_is_gone_and_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append(&journal, metrics(run, 7)).unwrap();
    assert!(all_abandoned(dir.path()).is_empty(), "its process lives");
    drop(journal);

    let taken = all_abandoned(dir.path());
    assert_eq!(taken.len(), 1);
    assert!(all_abandoned(dir.path()).is_empty(), "it is taken");
    assert_eq!(taken[0].manifest.destinations, ["sqlite:////x.db"]);
    let mut reader = taken[0].reader(0);
    let all = read_all(&mut reader, taken[0].end);
    assert_eq!(steps(&all), [7]);
    assert!(!taken[0].is_done());
    reader.advance(&all).unwrap();
    assert!(taken[0].is_done());
}

#[test]
fn damage_costs_only_the_records_it_hits_and_says_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    let mut ends = Vec::new();
    for step in 0..4 {
        append(&journal, metrics(run, step)).unwrap();
        ends.push(usize::try_from(journal.end().position.offset).unwrap());
    }
    let path = layout::segment_path(&journal.dir(), 1);
    drop(journal);
    let mut bytes = fs::read(&path).unwrap();
    bytes[ends[0] + 20] ^= 0xFF;
    bytes[ends[3] - 1] ^= 0xFF;
    fs::write(&path, bytes).unwrap();

    let taken = all_abandoned(dir.path()).remove(0);
    let batch = taken.reader(0).read(taken.end).unwrap();
    assert_eq!(steps(&batch.entries), [0, 2]);
    let told = batch.damage.join(" ");
    assert!(told.contains("with them a record"), "{told}");
    let kept = told.rsplit(" kept as ").next().unwrap();
    assert!(Path::new(kept).is_file(), "{told}");
}

#[test]
fn what_was_being_written_at_the_end_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append(&journal, metrics(run, 0)).unwrap();
    let begin = usize::try_from(journal.end().position.offset).unwrap();
    append(&journal, metrics(run, 1)).unwrap();
    let end = usize::try_from(journal.end().position.offset).unwrap();
    let path = layout::segment_path(&journal.dir(), 1);
    drop(journal);
    let whole = fs::read(&path).unwrap();
    // The loop tries every state that a kill can leave: the marker comes last, byte by byte.
    for written in begin + 4..=end {
        let mut bytes = whole.clone();
        bytes[begin..begin + 4].fill(0);
        bytes[written..end].fill(0);
        fs::write(&path, bytes).unwrap();
        let taken = all_abandoned(dir.path()).remove(0);
        let batch = taken.reader(0).read(taken.end).unwrap();
        assert_eq!(steps(&batch.entries), [0]);
        assert!(batch.damage.is_empty(), "{:?}", batch.damage);
    }
}

#[test]
fn a_file_of_another_kind_or_version_is_passed_over_named_and_kept() {
    for (content, word) in [
        (&b"something else entirely"[..], "no journal segment"),
        (b"HEIMDALJ\x01\0\0\0 of old", "format 1"),
        (b"HEIM", "file"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        let path = layout::segment_path(&journal.dir(), 1);
        drop(journal);
        fs::write(&path, content).unwrap();
        let taken = all_abandoned(dir.path()).remove(0);
        let mut reader = taken.reader(0);
        let batch = reader.read(taken.end).unwrap();
        if content.len() > usize::try_from(segment::HEADER_LEN).unwrap() {
            let told = &batch.damage[0];
            assert!(batch.entries.is_empty() && told.contains(word), "{told}");
            let kept = told.rsplit(" kept as ").next().unwrap();
            assert_eq!(fs::read(kept).unwrap(), content);
        }
        reader.advance(&[]).unwrap();
        assert!(taken.is_done());
    }
}

#[test]
fn open_runs_are_those_that_started_and_did_not_end() {
    let (open, ended) = (RunId::random(), RunId::random());
    let mut progress = Progress::START;
    let end = Record::RunEnded {
        run: ended,
        status: RunStatus::Finished,
        end_time: 4,
    };
    for (at, record) in [
        (1, start(open)),
        (2, start(ended)),
        (3, metrics(open, 0)),
        (4, end),
    ] {
        progress.observe(&Entry { at, record });
    }
    assert_eq!(progress.open_runs, BTreeMap::from([(open.to_string(), 3)]));
}

fn copied(staged: Staged) -> (String, u64) {
    match staged {
        Staged::Copied { name, size } => (name, size),
        Staged::Refused(error) => panic!("{error}"),
    }
}

#[test]
fn a_staged_file_keeps_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let file = dir.path().join("last.ckpt");
    fs::write(&file, "then").unwrap();
    let (name, size) = copied(journal.stage_file(&file, Admission::Bounded).unwrap());
    fs::write(&file, "now").unwrap();
    let reader = Reader::live(Arc::clone(&journal), 0);
    assert_eq!(fs::read_to_string(reader.staged(&name)).unwrap(), "then");
    assert_eq!(size, 4);
    assert!(matches!(
        journal.stage_file(&dir.path().join("none"), Admission::Bounded),
        Err(JournalError::Stage { .. })
    ));
}

#[test]
fn a_staged_file_stays_until_the_last_destination_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let uris = vec!["sqlite:////a.db".into(), "sqlite:////b.db".into()];
    let journal = Arc::new(Journal::create(JournalConfig::new(dir.path(), uris)));
    let run = RunId::random();
    let mut names: Vec<PathBuf> = Vec::new();
    let mut log = || {
        let (staged, size) = copied(journal.stage_bytes(b"x").unwrap());
        names.push(layout::staged_path(&journal.dir(), &staged));
        let path = crate::mlflow::artifact_path::ArtifactPath::parse("x").unwrap();
        let record = Record::Artifact {
            run,
            staged,
            path,
            size,
        };
        append(&journal, record).unwrap();
    };
    let mut readers = [0, 1].map(|it| Reader::live(Arc::clone(&journal), it));
    let mut deliver = |reader: usize| {
        let entries = readers[reader]
            .read(journal.end().position)
            .unwrap()
            .entries;
        readers[reader].advance(&entries).unwrap();
    };
    let there = |names: &[PathBuf]| names.iter().map(|it| it.exists()).collect::<Vec<_>>();
    log();
    log();
    deliver(0);
    log();
    deliver(1);
    assert_eq!(there(&names), [false, false, true]);
    deliver(0);
    assert_eq!(there(&names), [false, false, false]);
}

#[test]
fn a_segment_stays_until_the_slowest_destination_is_past_it() {
    let dir = tempfile::tempdir().unwrap();
    let uris = vec!["sqlite:////a.db".into(), "sqlite:////b.db".into()];
    let journal = Arc::new(Journal::create(JournalConfig::new(dir.path(), uris)));
    let run = RunId::random();
    let mut step = 0;
    while journal.end().position.segment < 3 {
        append(&journal, metrics(run, step)).unwrap();
        step += 1;
    }
    let mut readers = [0, 1].map(|it| Reader::live(Arc::clone(&journal), it));
    for reader in &mut readers {
        assert!(layout::segment_path(&journal.dir(), 1).exists());
        let all = read_all(reader, journal.end().position);
        assert_eq!(all.len() as i64, step);
        reader.advance(&all).unwrap();
    }
    assert!(!layout::segment_path(&journal.dir(), 1).exists());
    assert!(layout::segment_path(&journal.dir(), 3).exists());
}

#[test]
fn a_folder_that_somebody_deletes_is_made_again_with_what_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append(&journal, metrics(run, 0)).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    append(&journal, metrics(run, 1)).unwrap();
    let told = maintained(&journal);
    assert!(told.contains("was deleted"), "{told}");
    append(&journal, metrics(run, 2)).unwrap();
    drop(journal);
    let taken = all_abandoned(dir.path()).remove(0);
    assert_eq!(steps(&read_all(&mut taken.reader(0), taken.end)), [0, 1, 2]);
}

#[test]
fn what_is_left_of_records_that_were_appended_as_one_comes_again() {
    let run = RunId::random();
    let records = || (0..3).map(|step| metrics(run, step)).collect();
    for delivered in 0..=4 {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        append_all(&journal, records()).unwrap();
        append(&journal, metrics(run, 3)).unwrap();
        let mut reader = Reader::live(Arc::clone(&journal), 0);
        let entries = read_all(&mut reader, journal.end().position);
        assert_eq!(steps(&entries), [0, 1, 2, 3]);
        if delivered > 0 {
            reader.advance(&entries[..delivered]).unwrap();
        }
        drop((reader, journal));
        let taken = all_abandoned(dir.path()).remove(0);
        let left = read_all(&mut taken.reader(0), taken.end);
        assert_eq!(steps(&left), [0, 1, 2, 3][delivered..]);
    }
}

#[test]
fn a_journal_without_a_folder_begins_in_memory_and_moves_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("heimdall");
    fs::write(&place, "a file is in the way").unwrap();
    let journal = journal(&place);
    assert!(journal.disk_error().is_some());
    let run = RunId::random();
    for step in 0..3 {
        assert!(!matches!(
            append(&journal, metrics(run, step)),
            Ok(Appended {
                medium: Medium::Disk,
                ..
            }) | Err(_)
        ));
    }
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    let first = reader.in_memory();
    assert_eq!(steps(&first), [0, 1, 2]);
    reader.advance(&first[..2]).unwrap_err();
    assert_eq!(journal.end().in_memory, 1, "what is delivered is forgotten");

    fs::remove_file(&place).unwrap();
    let told = maintained(&journal);
    assert!(told.contains("on the disk again"), "{told}");
    assert_eq!((journal.end().in_memory, journal.disk_error()), (0, None));
    append(&journal, metrics(run, 3)).unwrap();
    assert_eq!(
        steps(&read_all(&mut reader, journal.end().position)),
        [2, 3]
    );
}

#[test]
fn at_its_limits_a_journal_takes_no_more_until_something_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let limits = JournalConfig {
        disk_limit: 200_000,
        ..config(dir.path())
    };
    let journal = Arc::new(Journal::create(limits));
    let run = RunId::random();
    let mut count = 0;
    let refused = loop {
        match append(&journal, metrics(run, count)) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, JournalError::NoRoom { .. }), "{refused}");
    assert!(!has_room(&journal, Room::Frame(100)));
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    while append(&journal, metrics(run, count)).is_err() {
        let some = reader.read(journal.end().position).unwrap().entries;
        reader.advance(&some).unwrap();
    }
    let left = read_all(&mut reader, journal.end().position);
    assert_eq!(steps(&left).last(), Some(&count));
    reader.advance(&left).unwrap();
    assert!(has_room(&journal, Room::Frame(100)));
}

#[test]
fn with_power_durability_records_are_there_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let durable = JournalConfig {
        durability: Durability::Power,
        ..config(dir.path())
    };
    let journal = Arc::new(Journal::create(durable));
    let run = RunId::random();
    for step in 0..3 {
        append(&journal, metrics(run, step)).unwrap();
    }
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    assert_eq!(
        steps(&read_all(&mut reader, journal.end().position)),
        [0, 1, 2]
    );
}

#[test]
fn records_that_belong_together_are_appended_together() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append_all(&journal, (0..3).map(|step| metrics(run, step)).collect()).unwrap();
    assert_eq!(journal.end().appended, 3);
    let too_long = Record::Params {
        run,
        values: vec![(
            Key::parse("param key", "p").unwrap(),
            "x".repeat(frame::MAX_PAYLOAD),
        )],
    };
    assert!(append_all(&journal, vec![metrics(run, 3), too_long, metrics(run, 4)]).is_err());
    append(&journal, metrics(run, 5)).unwrap();
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    let all = read_all(&mut reader, journal.end().position);
    assert_eq!(steps(&all), [0, 1, 2, 5]);
}

#[test]
fn a_run_that_was_resumed_is_open_until_it_ends_again() {
    let run = RunId::random();
    let mut progress = Progress::START;
    let mut observe = |at, record| {
        progress.observe(&Entry { at, record });
        progress.open_runs.clone()
    };
    assert_eq!(
        observe(7, Record::RunResumed { run }),
        [(run.to_string(), 7)].into()
    );
    let ended = Record::RunEnded {
        run,
        status: RunStatus::Finished,
        end_time: 8,
    };
    assert!(observe(8, ended).is_empty());
}

#[test]
fn bytes_are_staged_as_a_file_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let (name, size) = copied(journal.stage_bytes(b"text").unwrap());
    let (_, empty) = copied(journal.stage_bytes(b"").unwrap());
    assert_eq!((size, empty), (4, 0));
    let reader = Reader::live(Arc::clone(&journal), 0);
    assert_eq!(fs::read(reader.staged(&name)).unwrap(), b"text");
}

/// Reads bytes as a segment, to the end.
fn read_bytes(bytes: &[u8]) -> io::Result<(Vec<Entry>, u64)> {
    let (mut entries, mut skipped) = (Vec::new(), 0);
    let (mut offset, end) = (segment::HEADER_LEN, bytes.len() as u64);
    while offset < end {
        let chunk = segment::read(bytes, offset, end)?;
        assert!(chunk.offset > offset, "no progress at {offset}");
        entries.extend(chunk.entries.into_iter().map(|(_, entry, _)| entry));
        skipped += chunk.skipped;
        offset = chunk.offset;
    }
    Ok((entries, skipped))
}

#[test]
fn the_corpus_of_the_fuzzer_is_read_to_the_end() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/segment");
    let mut read = 0;
    for file in fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let found = read_bytes(&fs::read(&path).unwrap());
        match name.as_str() {
            "whole" => assert_eq!(found.unwrap().0.len(), 5),
            "torn" => assert!(matches!(found, Ok((entries, 0)) if entries.len() == 2)),
            "flipped" => assert!(matches!(found, Ok((entries, 1..)) if entries.len() == 4)),
            "foreign" | "of_format_1" => assert!(found.is_err()),
            _ => drop(found),
        }
        read += 1;
    }
    assert!(read >= 5, "the corpus has {read} files");
}

/// Writes the corpus anew after a change of the format: `cargo test write_the_corpus -- --ignored`.
#[test]
#[ignore = "writes into the repository"]
fn write_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    let mut ends = Vec::new();
    for record in [
        start(run),
        metrics(run, 1),
        Record::RunEnded {
            run,
            status: RunStatus::Finished,
            end_time: 2,
        },
        rewound(run),
        deleted(run),
    ] {
        append(&journal, record).unwrap();
        ends.push(usize::try_from(journal.end().position.offset).unwrap());
    }
    let mut whole = fs::read(layout::segment_path(&journal.dir(), 1)).unwrap();
    whole.truncate(ends[4] + 100);
    let mut torn = whole.clone();
    torn[ends[1]..ends[1] + 4].fill(0);
    torn[ends[2] - 5..].fill(0);
    let mut flipped = whole.clone();
    flipped[ends[0] + 25] ^= 4;
    let mut of_format_1 = whole.clone();
    of_format_1[8] = 1;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/segment");
    for (name, bytes) in [
        ("whole", whole),
        ("torn", torn),
        ("flipped", flipped),
        ("of_format_1", of_format_1),
        ("foreign", b"PK\x03\x04 is no journal".to_vec()),
    ] {
        fs::write(corpus.join(name), bytes).unwrap();
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_behind_a_header_are_read_to_the_end(
        frames in proptest::collection::vec(0u8..6, 0..6),
        noise in proptest::collection::vec((0usize..600, proptest::prelude::any::<u8>()), 0..12),
        cut in 0usize..600,
    ) {
        let run = RunId::random();
        let mut bytes = b"HEIMDALJ\x02\0\0\0".to_vec();
        for (number, kind) in (0..).zip(frames) {
            let mut buffer = Vec::new();
            let mut draft = Draft::new(&mut buffer);
            let record = match kind {
                0 => start(run),
                1 => rewound(run),
                2 => deleted(run),
                _ => metrics(run, kind.into()),
            };
            draft.push(&Entry { at: 1, record }).unwrap();
            bytes.extend_from_slice(draft.sealed(number));
        }
        for (at, byte) in noise {
            if let Some(hit) = bytes.get_mut(12 + at) {
                *hit = byte;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut).max(12));
        read_bytes(&bytes).unwrap();
    }
}

#[test]
fn a_folder_that_is_made_again_knows_how_far_its_destinations_were() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let run = RunId::random();
    append(&journal, start(run)).unwrap();
    let mut reader = Reader::live(Arc::clone(&journal), 0);
    let entries = reader.read(journal.end().position).unwrap().entries;
    reader.advance(&entries).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    append(&journal, metrics(run, 1)).unwrap();
    maintained(&journal);
    drop((reader, journal));

    let taken = all_abandoned(dir.path()).remove(0);
    let mut again = taken.reader(0);
    assert!(again.progress().open_runs.contains_key(&run.to_string()));
    let batch = again.read(taken.end).unwrap();
    assert_eq!(steps(&batch.entries), [1]);
    assert!(batch.damage.is_empty(), "{:?}", batch.damage);
}

#[test]
fn files_wait_for_as_much_room_as_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let limits = JournalConfig {
        disk_limit: 1_000_000,
        ..config(dir.path())
    };
    let journal = Arc::new(Journal::create(limits));
    let big = vec![0; 600_000];
    let (name, size) = copied(journal.stage_bytes(&big).unwrap());
    let Err(JournalError::NoRoom { room, .. }) = journal.stage_bytes(&big) else {
        panic!("there is room")
    };
    assert_eq!(room, Room::File(600_000));
    assert!(!has_room(&journal, room));
    journal.discard(&name, size);
    assert!(has_room(&journal, room));
    // A file that is alone is never too large, and the other files of a call follow the first.
    let huge = dir.path().join("huge");
    fs::write(&huge, vec![0; 2_000_000]).unwrap();
    copied(journal.stage_file(&huge, Admission::Bounded).unwrap());
    assert!(journal.stage_file(&huge, Admission::Bounded).is_err());
    copied(journal.stage_file(&huge, Admission::Always).unwrap());
}
