//! Who ended a program whose object is deleted. Runs alone, because two components request the end at the same time:
//! the relay, which knows why, and the garbage collector, which deletes the pod. On a busy machine the garbage
//! collector may be first, and the record then says that the kubelet stopped the program.

use remoteprocess_e2e::{POLITE, spec, with_temp_ns};
use serde_json::json;

#[test]
fn an_object_that_is_deleted_ends_its_program_and_its_record_says_so() {
    with_temp_ns("object-deleted", |namespace| {
        namespace.apply("gone", spec(POLITE, json!({}))).succeed()?;
        let uid = namespace.wait_running("gone")?["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let follow = namespace.editor.rproc(&["logs", "-f", "gone"]).start()?;
        namespace
            .editor
            .kubectl(&["delete", "remoteprocess", "gone", "--wait=true"])
            .succeed()?;
        let followed = follow.finish()?;
        followed.expect_code(5)?.expect_stderr(&["deletion"])?;
        namespace.wait_no_pods("gone", 45)?;
        let later = namespace.admin()?.rproc(&["logs", "--uid", &uid]).finish()?;
        later.expect_code(5)?.expect_stderr(&["deletion"])?;
        Ok(())
    });
}
