//! A Lease that a user deletes.

use super::*;

/// The holder does not know of it for up to a renew period, and if it has no way to the API server, for its renew deadline.
#[tokio::test(start_paused = true)]
async fn who_makes_a_lease_that_was_deleted_waits_for_the_former_holder() {
    for is_cut in [false, true] {
        let (server, throne) = (Server::default(), Throne::default());
        let (_stop, former) = match is_cut {
            false => run(&server, &throne, "a"),
            true => {
                // It renews with a server of its own, that breaks down.
                let own = Server::default();
                let started = run(&own, &throne, "a");
                until(5, || throne.who().is_some()).await;
                own.break_down(true);
                server.begin();
                started
            }
        };
        until(5, || throne.who().as_deref() == Some("a")).await;
        // Just after a renewal.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        server.remove();
        let (stop, task) = run(&server, &throne, "b");
        until(1, || server.holder().as_deref() == Some("b")).await;
        // The throne has room for one.
        let waited = until(17, || throne.who().as_deref() == Some("b")).await;
        assert!(waited > Duration::from_secs(10), "{waited:?}");
        former.abort();
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_former_holder_does_not_free_its_place() {
    let (server, throne) = (Server::default(), Throne::default());
    server.begin();
    let (stop_a, a) = run(&server, &throne, "a");
    until(1, || server.holder().as_deref() == Some("a")).await;
    stop_a.cancel();
    a.await.unwrap();
    assert_eq!(server.holder().as_deref(), Some("a"), "it is not released");
    let (stop_b, b) = run(&server, &throne, "b");
    let waited = until(17, || throne.who().is_some()).await;
    assert!(waited > Duration::from_secs(10), "{waited:?}");
    stop_b.cancel();
    b.await.unwrap();
    assert_eq!(server.holder(), None, "it has led");
}

#[tokio::test(start_paused = true)]
async fn who_waits_begins_again_if_its_lease_is_deleted_too() {
    let (server, throne) = (Server::default(), Throne::default());
    server.begin();
    let (stop, task) = run(&server, &throne, "a");
    tokio::time::sleep(Duration::from_secs(10)).await;
    server.remove();
    let waited = until(20, || throne.who().is_some()).await;
    assert!(waited > Duration::from_secs(14), "{waited:?}");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_creation_whose_answer_is_lost_counts() {
    let (server, throne) = (Server::default(), Throne::default());
    server.begin();
    server.0.lock().unwrap().loses_creation = true;
    let (stop, task) = run(&server, &throne, "a");
    let waited = until(20, || throne.who().is_some()).await;
    assert!(waited > Duration::from_secs(14), "{waited:?}");
    stop.cancel();
    task.await.unwrap();
}
