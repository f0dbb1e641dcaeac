use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use remoteprocess_api::sink::OutputStream;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::*;

/// A program that writes pieces of this length with this pause, and ends after so many.
#[derive(Clone)]
struct Program {
    length: usize,
    pause: Duration,
    pieces: u64,
    end: Result<(), ReadError>,
    /// Streams that are open now, and pieces that were taken.
    open: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Program {
    fn new(length: usize, pause: u64, pieces: u64) -> Self {
        Self {
            length,
            pause: Duration::from_secs(pause),
            pieces,
            end: Ok(()),
            open: Arc::default(),
            taken: Arc::default(),
        }
    }

    fn opened(&self) -> Intake {
        let request = Request {
            namespace: "shop".into(),
            name: "p".into(),
            uid: "u".into(),
            attempt: 1,
            only: None,
            stdout: 0,
            stderr: 0,
        };
        Intake::open(self, request)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }
}

impl OutputReader for Program {
    fn read(&self, _: Request, pieces: Sender<Piece>) -> BoxFuture<'static, Result<(), ReadError>> {
        let program = self.clone();
        program.open.fetch_add(1, Ordering::SeqCst);
        let count = Count(program.open.clone());
        Box::pin(async move {
            let _count = count;
            for number in 0..program.pieces {
                let piece = Piece::Data(OutputStream::Stdout, number, vec![0; program.length].into());
                if pieces.send(piece).await.is_err() {
                    return Ok(());
                }
                program.taken.fetch_add(1, Ordering::SeqCst);
                sleep(program.pause).await;
            }
            program.end
        })
    }

    fn problem(&self) -> Option<String> {
        None
    }
}

/// Takes pieces to the end of the stream, in their order. Returns their number, and the end.
async fn rest(intake: &mut Intake) -> (u64, Next) {
    let mut number = 0;
    loop {
        match intake.next().await {
            Next::Piece(Piece::Data(_, offset, _)) => {
                assert_eq!(offset, number, "in order");
                number += 1;
            }
            end => return (number, end),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_destination_has_the_stream_of_a_program_that_writes_little_opened_once() {
    let program = Program::new(10, 2, 30);
    let mut intake = program.opened();
    for expected in 0..30 {
        let Next::Piece(Piece::Data(_, number, _)) = intake.next().await else {
            panic!("{expected}");
        };
        assert_eq!(number, expected);
        intake.during(sleep(Duration::from_secs(15))).await;
    }
    assert_eq!(intake.next().await, Next::End(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn no_stream_is_kept_for_a_destination_that_is_away() {
    let program = Program::new(10, 2, 1000);
    let mut intake = program.opened();
    intake.during(sleep(Duration::from_secs(19))).await;
    assert!(program.is_open());
    intake
        .during(async {
            sleep(Duration::from_secs(21)).await;
            assert!(!program.is_open());
        })
        .await;
    let sent = program.taken() as u64;
    assert_eq!(
        rest(&mut intake).await,
        (sent, Next::Closed),
        "what was received is kept"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_which_nothing_is_taken_is_closed_soon() {
    let program = Program::new(32 << 10, 0, 1000);
    let mut intake = program.opened();
    intake
        .during(async {
            sleep(Duration::from_secs(1)).await;
            assert!(program.is_open());
            sleep(Duration::from_millis(1500)).await;
            assert!(!program.is_open());
        })
        .await;
    let (kept, end) = rest(&mut intake).await;
    assert!((3..=6).contains(&kept), "{kept} pieces of 32 KiB");
    assert_eq!(end, Next::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_comes_after_its_output() {
    let failed = Err(ReadError::Forbidden("no".into()));
    for end in [Ok(()), failed] {
        let mut program = Program::new(10, 0, 5);
        program.end = end.clone();
        let mut intake = program.opened();
        intake.during(sleep(Duration::from_secs(60))).await;
        assert!(!program.is_open());
        assert_eq!(rest(&mut intake).await, (5, Next::End(end)));
    }
}
