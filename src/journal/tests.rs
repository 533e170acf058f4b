use super::{recovery::*, *};
use crate::{
    record::{Key, RunStart},
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

fn metrics(run: RunId, step: i64) -> Record {
    let values = vec![(Key::parse("metric key", "loss").unwrap(), 0.5)];
    Record::Metrics {
        run,
        step,
        timestamp: step,
        values,
    }
}

fn steps(entries: &[Entry]) -> Vec<i64> {
    let step = |entry: &Entry| match entry.record {
        Record::Metrics { step, .. } => Some(step),
        _ => None,
    };
    entries.iter().filter_map(step).collect()
}

fn read_all(reader: &mut Reader, end: Position) -> Vec<Entry> {
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
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let run = RunId::random();
    let count = 200_000;
    for step in 0..count {
        journal.append(metrics(run, step)).unwrap();
    }
    assert!(
        journal.end().position.segment > 1,
        "the test wants more than one segment"
    );
    let mut reader = Reader::open(journal.dir());
    let all = read_all(&mut reader, journal.end().position);
    assert_eq!(steps(&all), (0..count).collect::<Vec<_>>());
    reader.advance(&all).unwrap();
    assert!(
        !segment::path(journal.dir(), 1).exists(),
        "delivered segments are removed"
    );
}

#[test]
fn a_reader_goes_on_where_the_saved_position_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let run = RunId::random();
    journal.append(start(run)).unwrap();
    journal.append(metrics(run, 1)).unwrap();
    let mut reader = Reader::open(journal.dir());
    let first = reader.read(journal.end().position).unwrap().entries;
    reader.advance(&first).unwrap();
    journal.append(metrics(run, 2)).unwrap();

    let mut again = Reader::open(journal.dir());
    assert_eq!(
        again.progress().open_runs.keys().collect::<Vec<_>>(),
        [&run.to_string()]
    );
    assert_eq!(steps(&read_all(&mut again, journal.end().position)), [2]);
}

#[test]
fn a_journal_is_abandoned_when_its_lock_is_gone_and_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let run = RunId::random();
    journal.append(metrics(run, 7)).unwrap();
    assert!(abandoned(dir.path()).is_empty(), "its process lives");
    drop(journal);

    let mut taken = abandoned(dir.path());
    assert_eq!(taken.len(), 1);
    assert!(abandoned(dir.path()).is_empty(), "it is taken");
    let end = taken[0].end;
    assert_eq!(taken[0].manifest.destination, "sqlite:////x.db");
    assert_eq!(steps(&read_all(&mut taken[0].reader, end)), [7]);
}

#[test]
fn a_torn_tail_and_damage_cost_only_the_records_they_hit() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let run = RunId::random();
    let mut ends = Vec::new();
    for step in 0..4 {
        journal.append(metrics(run, step)).unwrap();
        ends.push(journal.end().position.offset);
    }
    let path = segment::path(journal.dir(), 1);
    drop(journal);
    let mut bytes = fs::read(&path).unwrap();
    bytes[usize::try_from(ends[0]).unwrap() + 20] ^= 0xFF;
    bytes.truncate(bytes.len() - 3);
    fs::write(&path, bytes).unwrap();

    let mut taken = abandoned(dir.path()).remove(0);
    let batch = taken.reader.read(taken.end).unwrap();
    assert_eq!(steps(&batch.entries), [0, 2]);
    assert!(
        batch.damage[0].contains("00000001.segment"),
        "{:?}",
        batch.damage
    );
}

#[test]
fn a_foreign_file_is_passed_over_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let path = segment::path(journal.dir(), 1);
    drop(journal);
    fs::write(&path, "something else entirely").unwrap();
    let mut taken = abandoned(dir.path()).remove(0);
    let batch = taken.reader.read(taken.end).unwrap();
    assert!(
        batch.entries.is_empty() && batch.damage[0].contains("no journal segment"),
        "{batch:?}"
    );
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

#[test]
fn a_staged_file_keeps_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let file = dir.path().join("last.ckpt");
    fs::write(&file, "then").unwrap();
    let staged = journal.staging().copy(&file).unwrap();
    fs::write(&file, "now").unwrap();
    let reader = Reader::open(journal.dir());
    assert_eq!(
        fs::read_to_string(reader.staged(&staged.name)).unwrap(),
        "then"
    );
    assert_eq!(staged.size, 4);
}

#[test]
fn records_that_belong_together_are_appended_together() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let run = RunId::random();
    journal
        .append_all((0..3).map(|step| metrics(run, step)).collect())
        .unwrap();
    assert_eq!(journal.end().appended, 3);
    let too_long = Record::Params {
        run,
        values: vec![(
            Key::parse("param key", "p").unwrap(),
            "x".repeat(frame::MAX_PAYLOAD),
        )],
    };
    assert!(
        journal
            .append_all(vec![metrics(run, 3), too_long, metrics(run, 4)])
            .is_err()
    );
    journal.append(metrics(run, 5)).unwrap();
    let mut reader = Reader::open(journal.dir());
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
    let journal = Journal::create(dir.path(), "sqlite:////x.db").unwrap();
    let staged = journal.staging().write(b"text").unwrap();
    let empty = journal.staging().write(b"").unwrap();
    assert_eq!((staged.size, empty.size), (4, 0));
    let reader = Reader::open(journal.dir());
    assert_eq!(fs::read(reader.staged(&staged.name)).unwrap(), b"text");
}
