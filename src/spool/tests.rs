use std::process::Command;

use super::*;

const LIMITS: Limits = Limits { max_bytes: 1 << 30, reserve: 0 };

fn open(dir: &Path) -> Spool {
    Spool::open(dir, LIMITS).unwrap().0
}

fn push(spool: &Spool, lines: std::ops::Range<u64>) -> u64 {
    let lines: Vec<String> = lines.map(|n| format!("{{\"n\":{n}}}")).collect();
    spool.push(lines.iter().map(|l| (7, l.as_bytes()))).unwrap()
}

fn numbers(entries: &[Entry]) -> Vec<u64> {
    let number = |e: &Entry| {
        let text = std::str::from_utf8(&e.line).unwrap();
        text.trim_start_matches("{\"n\":").trim_end_matches('}').parse().unwrap()
    };
    entries.iter().map(number).collect()
}

/// Everything from the cursor on is delivered.
fn drain(spool: &Spool, name: &str) -> Vec<u64> {
    let mut cursor = spool.cursor(name).unwrap();
    let found = spool.peek(cursor.low(), u64::MAX - 1, usize::MAX).unwrap();
    cursor = Cursor { next: spool.end(), parts: VecDeque::new() };
    spool.keep(name, &cursor, &[], &[]).unwrap();
    numbers(&found)
}

#[test]
fn numbers_go_on_after_a_drain_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.cursor("a").unwrap();
    assert_eq!(push(&spool, 0..10), 1);
    let first_id = spool.peek(1, 1, 1).unwrap()[0].id;
    assert_eq!(drain(&spool, "a"), (0..10).collect::<Vec<_>>());
    assert_eq!(spool.held(), Held { head: 11, next: 11, events: 0, bytes: 0, max_bytes: 1 << 30 });
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(push(&spool, 10..12), 11);
    let id = spool.peek(11, 11, 1).unwrap()[0].id;
    assert_eq!((id.store, id.seq), (first_id.store, 11));
    assert_eq!(drain(&spool, "a"), [10, 11]);
}

#[test]
fn the_slowest_exporter_decides_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.cursor("fast").unwrap();
    spool.cursor("slow").unwrap();
    push(&spool, 0..2000);
    drain(&spool, "fast");
    assert_eq!(spool.held().head, 1);
    let part =
        Part { first: 1001, last: 1100, formed_ns: 5, family: 1001, vouched: true, revived: false };
    let cursor = Cursor { next: 1101, parts: VecDeque::from([part]) };
    spool.keep("slow", &cursor, &[], &[]).unwrap();
    assert_eq!(spool.held().head, 1001);
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.cursor("slow").unwrap(), cursor);
    assert_eq!(spool.cursors(), ["fast", "slow"]);
    assert_eq!(drain(&spool, "slow").len(), 1000);
    // One that is new begins with what comes.
    assert_eq!(spool.cursor("new").unwrap().next, 2001);
    push(&spool, 0..1);
    spool.forget("slow").unwrap();
    spool.forget("new").unwrap();
    drain(&spool, "fast");
    assert_eq!(spool.held().bytes, 0);
}

#[test]
fn dead_letters_stay_until_they_are_revived() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let mut cursor = spool.cursor("a").unwrap();
    push(&spool, 0..3);
    let entries = spool.peek(1, 3, 3).unwrap();
    let died = Dead { entry: entries[1].clone(), reason: "400: no".into() };
    cursor.next = 4;
    spool.keep("a", &cursor, std::slice::from_ref(&died), &[]).unwrap();
    spool.keep("a", &cursor, std::slice::from_ref(&died), &[]).unwrap();
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.dead("a", 10).unwrap(), std::slice::from_ref(&died));
    assert_eq!(spool.dead_letter("a", 2).unwrap(), Some(died));
    assert!(spool.dead_letter("a", 1).unwrap().is_none() && spool.dead("b", 1).unwrap().is_empty());
    assert!(spool.held().bytes > 0);
    spool.keep("a", &cursor, &[], &[2]).unwrap();
    assert!(spool.dead("a", 10).unwrap().is_empty());
    assert_eq!(spool.held().bytes, 0);
}

#[test]
fn a_full_spool_refuses_and_takes_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Limits { max_bytes: 10_000, reserve: 0 }).unwrap().0;
    spool.cursor("a").unwrap();
    let line = vec![b'x'; 1000];
    let mut taken = 0;
    while spool.push([(0, &line[..])].into_iter()).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 9);
    assert!(matches!(spool.push([(0, &line[..])].into_iter()), Err(SpoolError::Full { .. })));
    spool.keep("a", &Cursor { next: 5, parts: VecDeque::new() }, &[], &[]).unwrap();
    assert_eq!(spool.push([(0, &line[..])].into_iter()).unwrap(), 10);
    let no_disk = Limits { max_bytes: 10_000, reserve: u64::MAX / 2 };
    drop(spool);
    let spool = Spool::open(dir.path(), no_disk).unwrap().0;
    assert!(matches!(spool.push([(0, &line[..])].into_iter()), Err(SpoolError::DiskFull { .. })));
}

#[test]
fn two_sensors_do_not_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let _spool = open(dir.path());
    let error = Spool::open(dir.path(), LIMITS).err().unwrap();
    assert!(matches!(error, SpoolError::InUse(_)));
    assert!(error.to_string().contains("--data-dir"));
}

#[test]
fn a_damaged_store_is_set_aside_and_salvaged() {
    for (name, least, damage) in [
        ("cut", 500, (|b: &mut Vec<u8>| b.truncate(b.len() / 10 * 4)) as fn(&mut Vec<u8>)),
        ("head", 2000, |b| b[..2048].fill(0xa5)),
        ("holes", 1500, |b| {
            b.chunks_mut(65_536).for_each(|c| c.iter_mut().take(64).for_each(|b| *b = 0xff));
        }),
        ("gone", 0, Vec::clear),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path());
        let mut cursor = spool.cursor("a").unwrap();
        push(&spool, 0..3000);
        let id = spool.peek(1, 1, 1).unwrap()[0].id.store;
        let dead = Dead { entry: spool.peek(5, 5, 1).unwrap().remove(0), reason: "no".into() };
        cursor.next = 1001;
        spool.keep("a", &cursor, &[dead], &[]).unwrap();
        drop(spool);
        // As a power cut leaves it.
        let mark = dir.path().join("mark");
        let mut unclean = fs::read(&mark).unwrap();
        *unclean.last_mut().unwrap() = 0;
        let body = unclean.split_off(12);
        let frame = frame(Kind::Meta, |o| o.extend(&body[1..]));
        fs::write(&mark, frame).unwrap();
        let db = dir.path().join("store/db");
        let mut bytes = fs::read(&db).unwrap();
        damage(&mut bytes);
        fs::write(&db, &bytes).unwrap();
        let (spool, opened) = Spool::open(dir.path(), LIMITS).unwrap();
        let held = spool.held();
        let cursor = spool.cursor("a").unwrap();
        let found = spool.peek(cursor.low(), u64::MAX - 1, usize::MAX).unwrap();
        println!("{name}: {opened:?}, {} of 2000 events, next {}", found.len(), held.next);
        let numbers = numbers(&found);
        assert!(numbers.is_sorted() && found.iter().all(|e| e.id.store == id));
        assert!(opened.set_aside.is_some() || opened.salvaged > 0 || name == "gone");
        if name != "gone" {
            assert!(found.len() >= least, "{name}");
        }
        // Whatever happened, it takes and gives, under numbers that were never used.
        let first = push(&spool, 9000..9010);
        assert!(first > 3000 && spool.held().next == first + 10);
        assert_eq!(self::numbers(&spool.peek(first, u64::MAX - 1, 99).unwrap()).len(), 10);
        drop(spool);
        open(dir.path());
    }
}

#[test]
fn a_store_is_not_taken_for_damaged_while_the_one_before_still_holds_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.cursor("a").unwrap();
    push(&spool, 0..10);
    drop(spool);
    // As sled's threads do until their last write has ended.
    let held = File::open(dir.path().join("store/db")).unwrap();
    held.lock().unwrap();
    let (spool, opened) = std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        Spool::open(dir.path(), LIMITS).unwrap()
    });
    assert_eq!(opened, Opened::default());
    assert_eq!(drain(&spool, "a"), (0..10).collect::<Vec<_>>());
}

/// A disk of its own, as large as `size` says.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, with a message, where none can be mounted.
    fn new(size: &str) -> Option<Self> {
        let this = Self(tempfile::tempdir().unwrap());
        let size = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(this.0.path())
            .output()
            .is_ok_and(|o| o.status.success());
        if !mounted {
            println!("skipped: no tmpfs can be mounted, so no disk is full");
        }
        mounted.then_some(this)
    }

    /// Another program takes all that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("other");
        let mut file = File::options().create(true).append(true).open(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Pushes until the disk is full; how many events were taken.
fn push_until_full(spool: &Spool) -> u64 {
    let line = vec![b'x'; 1000];
    let mut taken = 0;
    loop {
        match spool.push((0..100).map(|_| (0, &line[..]))) {
            Ok(_) => taken += 100,
            Err(SpoolError::DiskFull { .. }) => return taken,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_full_disk_refuses_and_what_was_taken_is_there_afterwards() {
    let Some(disk) = Disk::new("140m") else { return };
    let at = disk.0.path();
    fs::write(at.join("other"), vec![0; 40 << 20]).unwrap();
    let spool = open(at);
    spool.cursor("a").unwrap();
    let taken = push_until_full(&spool);
    let other = disk.fill();
    let more = push_until_full(&spool);
    println!("{taken} events, then {more} when another program filled the disk");
    assert!(taken > 5_000);
    drop(spool);
    // It opens on the full disk, with all that it took.
    let spool = open(at);
    let found = spool.peek(1, u64::MAX - 1, usize::MAX).unwrap();
    assert!(found.len() as u64 >= taken + more, "{} of {}", found.len(), taken + more);
    fs::remove_file(other).unwrap();
    push(&spool, 0..1);
    spool.keep("a", &Cursor { next: spool.end(), parts: VecDeque::new() }, &[], &[]).unwrap();
    assert_eq!(spool.held().events, 0);
}

#[test]
fn the_room_of_the_ballast_is_for_opening_not_for_events() {
    let Some(disk) = Disk::new("120m") else { return };
    let spool = open(disk.0.path());
    spool.cursor("a").unwrap();
    push(&spool, 0..10);
    let other = disk.fill();
    // As it is when the store had to be opened on the full disk.
    fs::remove_file(spool.ballast()).unwrap();
    assert_eq!(push_until_full(&spool), 0);
    let free = free_bytes(disk.0.path()).unwrap();
    assert!(free > BALLAST / 2, "{free}");
    // With room again it is laid again, and events are taken.
    fs::remove_file(other).unwrap();
    push(&spool, 10..20);
    assert!(spool.ballast().exists());
    assert_eq!(drain(&spool, "a"), (0..20).collect::<Vec<_>>());
}
