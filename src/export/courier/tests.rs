use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::export::Sending;
use crate::export::intake::Gauges;
use crate::export::settings::Fields;
use crate::spool::{Limits, Spool};

/// What a receiver answers to a batch.
type Answer = Box<dyn Fn(&Frozen) -> Result<(), Failure> + Send + Sync>;

/// A receiver that answers as it is told, and holds the sender to its word: an id stands for the same
/// events and the same time.
struct Receiver {
    answer: Answer,
    room: usize,
    seen: Mutex<HashMap<String, Frozen>>,
    accepted: Mutex<Vec<u64>>,
    attempts: Mutex<u64>,
}

impl Exporter for Receiver {
    fn cost(&self, event: &Outgoing) -> usize {
        event.line.len()
    }

    fn room(&self) -> usize {
        self.room
    }

    fn send<'a>(&'a self, batch: &'a Frozen) -> Sending<'a> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            *self.attempts.lock().unwrap() += 1;
            let mut seen = self.seen.lock().unwrap();
            let first = seen.entry(batch.id.clone()).or_insert_with(|| batch.clone());
            assert_eq!((first.formed_ns, &first.events), (batch.formed_ns, &batch.events));
            (self.answer)(batch)?;
            self.accepted.lock().unwrap().extend(batch.events.iter().map(|e| e.id.seq));
            Ok(())
        })
    }

    fn test(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async { Ok(String::new()) })
    }
}

fn receiver(
    answer: impl Fn(&Frozen) -> Result<(), Failure> + Send + Sync + 'static,
) -> Arc<Receiver> {
    Arc::new(Receiver {
        answer: Box::new(answer),
        room: 1 << 20,
        seen: Mutex::default(),
        accepted: Mutex::default(),
        attempts: Mutex::default(),
    })
}

fn spool(dir: &Path) -> Arc<Shared> {
    let spool = Spool::open(dir, Limits { max_bytes: 1 << 30, reserve: 0 }).unwrap().0;
    spool.cursor("t").unwrap();
    Arc::new(Shared {
        spool: Arc::new(spool),
        statuses: Mutex::default(),
        intake: Gauges::default(),
        wishes: Mutex::default(),
    })
}

fn push(shared: &Shared, count: usize) {
    let lines: Vec<String> = (0..count).map(|n| format!("{{\"n\":{n}}}")).collect();
    shared.spool.push(lines.iter().map(|l| (1, l.as_bytes()))).unwrap();
}

fn courier(shared: &Arc<Shared>, receiver: &Arc<Receiver>, in_flight: usize) -> Courier {
    let delivery = Delivery { events: 10, in_flight, ..Delivery::default() };
    let view = View::new("t", &Fields::default(), None).unwrap();
    Courier::new(shared, "t", delivery, view, Arc::clone(receiver) as Arc<dyn Exporter>)
}

fn invalid<T>() -> Result<T, Failure> {
    Err(Failure::Invalid { why: "400".into() })
}

fn down<T>() -> Result<T, Failure> {
    Err(Failure::Retry { kind: "connect", why: "down".into(), after: None })
}

/// Whether a batch has one of these events.
fn has(batch: &Frozen, seqs: &[u64]) -> bool {
    batch.events.iter().any(|e| seqs.contains(&e.id.seq))
}

fn dead(shared: &Shared) -> Vec<u64> {
    shared.spool.dead("t", 99).unwrap().iter().map(|d| d.entry.id.seq).collect()
}

/// Runs until everything is delivered.
async fn drain(shared: &Shared, courier: &mut Courier) {
    shared.wishes.lock().unwrap()["t"].send(Wish::Drain).unwrap();
    courier.run().await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_uplink_costs_nothing_but_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let up = Instant::now() + Duration::from_secs(3600);
    let receiver = receiver(move |_| if Instant::now() < up { down() } else { Ok(()) });
    let mut courier = courier(&shared, &receiver, 1);
    push(&shared, 5000);
    drain(&shared, &mut courier).await;
    assert_eq!(*receiver.accepted.lock().unwrap(), (1..=5000).collect::<Vec<_>>());
    assert!(Instant::now() - up < Duration::from_secs(400));
    assert_eq!((shared.spool.held().bytes, dead(&shared).len()), (0, 0));
    let attempts = *receiver.attempts.lock().unwrap();
    // Full jitter up to 300 s: about one in 150 s.
    assert!((510..600).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn poison_is_set_aside_and_its_fellows_pass() {
    for in_flight in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let shared = spool(dir.path());
        const POISON: [u64; 5] = [1, 55, 56, 57, 1000];
        let receiver = receiver(|b| if has(b, &POISON) { invalid() } else { Ok(()) });
        let mut courier = courier(&shared, &receiver, in_flight);
        push(&shared, 1000);
        drain(&shared, &mut courier).await;
        let mut accepted = receiver.accepted.lock().unwrap().clone();
        if in_flight == 1 {
            assert!(accepted.is_sorted());
        }
        accepted.sort_unstable();
        assert_eq!(accepted, (1..=1000).filter(|n| !POISON.contains(n)).collect::<Vec<_>>());
        assert_eq!(dead(&shared), POISON);
        let letter = &shared.spool.dead("t", 1).unwrap()[0];
        assert!(letter.reason.contains("400") && letter.entry.line == b"{\"n\":0}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_event_alone_in_its_batch_waits_for_a_witness() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let receiver = receiver(|b| if has(b, &[1]) { invalid() } else { Ok(()) });
    let mut courier = courier(&shared, &receiver, 4);
    push(&shared, 1);
    let run = tokio::time::timeout(Duration::from_secs(500), courier.run());
    assert!(run.await.is_err() && dead(&shared).is_empty());
    push(&shared, 1);
    drain(&shared, &mut courier).await;
    assert_eq!((dead(&shared), receiver.accepted.lock().unwrap().clone()), (vec![1], vec![2]));
}

#[tokio::test(start_paused = true)]
async fn when_everything_is_invalid_nothing_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let mended = Instant::now() + Duration::from_secs(7200);
    let receiver = receiver(move |b| match Instant::now() < mended || has(b, &[77]) {
        true => invalid(),
        false => Ok(()),
    });
    let mut courier = courier(&shared, &receiver, 4);
    push(&shared, 500);
    let run = tokio::time::timeout(Duration::from_secs(7000), courier.run());
    assert!(run.await.is_err());
    assert_eq!(shared.status().exporters[0].state, ExporterState::Held);
    assert!(dead(&shared).is_empty());
    let before = *receiver.attempts.lock().unwrap();
    // Two batches taken apart, then about one of each suspected batch a minute.
    assert!(before < 2500, "{before}");
    drain(&shared, &mut courier).await;
    assert_eq!(dead(&shared), [77]);
    assert_eq!(receiver.accepted.lock().unwrap().len(), 499);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_held_and_probed() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let mended = Instant::now() + Duration::from_secs(3600);
    let hold = || Failure::Hold { kind: "403", why: "403: no right".into() };
    let receiver = receiver(move |_| if Instant::now() < mended { Err(hold()) } else { Ok(()) });
    let mut courier = courier(&shared, &receiver, 4);
    push(&shared, 100);
    let run = tokio::time::timeout(Duration::from_secs(3590), courier.run());
    assert!(run.await.is_err());
    let status = shared.status().exporters.remove(0);
    assert_eq!((status.state, status.waiting), (ExporterState::Held, 100));
    assert!(status.problem.unwrap().contains("no right"));
    assert!(*receiver.attempts.lock().unwrap() < 90);
    drain(&shared, &mut courier).await;
    assert_eq!(receiver.accepted.lock().unwrap().len(), 100);
    assert_eq!(shared.status().exporters[0].state, ExporterState::Idle);
}

#[tokio::test(start_paused = true)]
async fn too_large_is_halved_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let receiver = receiver(|b| match b.events.len() > 3 {
        true => Err(Failure::TooLarge { why: "413".into() }),
        false => Ok(()),
    });
    let mut courier = courier(&shared, &receiver, 1);
    push(&shared, 200);
    drain(&shared, &mut courier).await;
    assert_eq!(*receiver.accepted.lock().unwrap(), (1..=200).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_restart_repeats_the_same_batches() {
    let dir = tempfile::tempdir().unwrap();
    let lost = receiver(|_| down());
    {
        let shared = spool(dir.path());
        push(&shared, 95);
        let mut courier = courier(&shared, &lost, 4);
        let run = tokio::time::timeout(Duration::from_secs(30), courier.run());
        assert!(run.await.is_err());
    }
    let shared = spool(dir.path());
    let works = receiver(|_| Ok(()));
    *works.seen.lock().unwrap() = lost.seen.lock().unwrap().clone();
    assert!(!works.seen.lock().unwrap().is_empty());
    let mut courier = courier(&shared, &works, 4);
    drain(&shared, &mut courier).await;
    // The receiver has compared what came again with what came first.
    let mut accepted = works.accepted.lock().unwrap().clone();
    accepted.sort_unstable();
    assert_eq!(accepted, (1..=95).collect::<Vec<_>>());
    assert_eq!(shared.spool.held().events, 0);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_sent_again_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let shared = spool(dir.path());
    let mended = Instant::now() + Duration::from_secs(100);
    let receiver = receiver(move |b| match has(b, &[5]) && Instant::now() < mended {
        true => invalid(),
        false => Ok(()),
    });
    let mut courier = courier(&shared, &receiver, 4);
    push(&shared, 20);
    let wish = |w| shared.wishes.lock().unwrap()["t"].send(w).unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(50), courier.run()).await;
    assert_eq!(dead(&shared), [5]);
    wish(Wish::Revive);
    let _ = tokio::time::timeout(Duration::from_secs(20), courier.run()).await;
    assert_eq!(dead(&shared), [5]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    wish(Wish::Revive);
    drain(&shared, &mut courier).await;
    assert!(dead(&shared).is_empty());
    assert_eq!(receiver.accepted.lock().unwrap().len(), 20);
    assert_eq!((shared.spool.held().bytes, shared.status().exporters[0].dead), (0, 0));
}
