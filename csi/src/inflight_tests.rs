//! Joining, turning away, leaving and breaking off, under a paused clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use tokio::sync::oneshot;
use tonic::Code;

use super::*;

const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

fn fingerprint(arguments: &str) -> Fingerprint {
    Fingerprint::of("CreateVolume", &arguments)
}

fn awaited() -> String {
    "waiting for node b".to_owned()
}

/// Work that takes a while, counts its runs and answers with the number of its run.
fn work(runs: &Arc<AtomicU32>, seconds: u64) -> impl Future<Output = Result<u32, Status>> + Send + 'static {
    let runs = Arc::clone(runs);
    async move {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(run)
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_identical_call_joins_and_gets_the_same_result() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let first = inflight.run("v", fingerprint("a"), MINUTE, work(&runs, 10), awaited);
    let second = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        inflight.run("v", fingerprint("a"), MINUTE, work(&runs, 10), awaited).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap(), second.unwrap()), (1, 1));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(inflight.running(), []);
}

#[tokio::test(start_paused = true)]
async fn joiners_get_the_same_failure() {
    let inflight = Inflight::default();
    let fail = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err::<(), _>(Status::resource_exhausted("no node has 10 GiB"))
    };
    let call = || inflight.run("v", fingerprint("a"), None, fail(), awaited);
    let (first, second) = tokio::join!(call(), call());
    for result in [first, second] {
        assert_eq!(result.unwrap_err().message(), "no node has 10 GiB");
    }
}

#[tokio::test(start_paused = true)]
async fn other_arguments_another_operation_and_another_answer_are_aborted() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let first = inflight.run("v", fingerprint("a"), MINUTE, work(&runs, 10), awaited);
    let others = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let arguments = inflight.run("v", fingerprint("b"), MINUTE, work(&runs, 10), awaited).await.unwrap_err();
        assert_eq!(arguments.code(), Code::Aborted);
        let expected = "v: CreateVolume must wait: CreateVolume with other arguments has been running for 3 s";
        assert_eq!(arguments.message(), expected);
        let delete = Fingerprint::of("DeleteVolume", &"a");
        let operation = inflight.run("v", delete, MINUTE, async { Ok(()) }, awaited).await.unwrap_err();
        assert_eq!(operation.message(), "v: DeleteVolume must wait: CreateVolume has been running for 3 s");
        let answer = inflight.run("v", fingerprint("a"), MINUTE, async { Ok("text") }, awaited).await.unwrap_err();
        assert_eq!(answer.code(), Code::Aborted);
    };
    let (first, ()) = tokio::join!(first, others);
    assert_eq!(first.unwrap(), 1);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_do_not_disturb_each_other() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let begin = Instant::now();
    let call = |key: &'static str| inflight.run(key, fingerprint("a"), MINUTE, work(&runs, 10), awaited);
    let (first, second) = tokio::join!(call("v"), call("w"));
    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn the_work_goes_on_when_the_time_is_over_and_a_later_call_joins_it() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let begin = Instant::now();
    let hold = Some(Duration::from_secs(14));
    let early = inflight.run("v", fingerprint("a"), hold, work(&runs, 40), awaited).await.unwrap_err();
    assert_eq!((early.code(), early.message()), (Code::DeadlineExceeded, "waiting for node b"));
    assert_eq!(begin.elapsed(), Duration::from_secs(14));
    let running = Running { key: "v".into(), operation: "CreateVolume", elapsed: Duration::from_secs(14) };
    assert_eq!(inflight.running(), [running]);
    let joined = inflight.run("v", fingerprint("a"), MINUTE, work(&runs, 40), awaited).await.unwrap();
    assert_eq!((joined, begin.elapsed()), (1, Duration::from_secs(40)));
}

#[tokio::test(start_paused = true)]
async fn the_work_goes_on_when_the_caller_goes_away() {
    let inflight = Inflight::default();
    let (done, is_done) = oneshot::channel();
    let work = async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let _ = done.send(());
        Ok(())
    };
    let call = inflight.run("v", fingerprint("a"), None, work, awaited);
    // Dropping the call is what the server does when a connection is lost.
    assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
    is_done.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_after_the_end_runs_again() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    for expected in 1..=3 {
        let run = inflight.run("v", fingerprint("a"), MINUTE, work(&runs, 1), awaited).await.unwrap();
        assert_eq!(run, expected);
    }
}

/// A caller that, in the very moment it is told, looks whether its key is free.
struct Looker {
    inflight: Inflight,
    busy: AtomicUsize,
}

impl Wake for Looker {
    fn wake(self: Arc<Self>) {
        self.busy.store(self.inflight.running().len(), Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_is_free_before_anybody_is_told() {
    let inflight = Inflight::default();
    let looker = Arc::new(Looker { inflight: inflight.clone(), busy: AtomicUsize::new(99) });
    let mut call = pin!(inflight.run("v", fingerprint("a"), None, async { Ok(()) }, awaited));
    assert!(call.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&looker)))).is_pending());
    tokio::task::yield_now().await;
    assert_eq!(looker.busy.load(Ordering::SeqCst), 0);
    assert!(call.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_panic_frees_the_key_and_is_told() {
    let inflight = Inflight::default();
    let broken = async { if true { panic!("planted") } else { Ok(()) } };
    let status = inflight.run("v", fingerprint("a"), None, broken, awaited).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("v: CreateVolume broke off"), "{}", status.message());
    assert!(inflight.run("v", fingerprint("b"), None, async { Ok(()) }, awaited).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_time_gets_the_sentence_and_starts_the_work() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let status = inflight.run("v", fingerprint("a"), Some(Duration::ZERO), work(&runs, 5), awaited).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(inflight.running(), []);
}

#[test]
fn a_runtime_that_ends_frees_the_key_without_a_deadlock() {
    let (inflight, runs) = (Inflight::default(), Arc::new(AtomicU32::new(0)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let hold = Some(Duration::from_millis(1));
    let call = inflight.run("v", fingerprint("a"), hold, work(&runs, 3600), awaited);
    assert_eq!(runtime.block_on(call).unwrap_err().code(), Code::DeadlineExceeded);
    drop(runtime);
    assert_eq!(inflight.running(), []);
}
