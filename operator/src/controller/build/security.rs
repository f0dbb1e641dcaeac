//! Security contexts: the agent's is always `restricted`; the program's is the user's, with safe defaults for what the
//! user does not set (Kubernetes, "Pod Security Standards").

use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, SeccompProfile, SecurityContext};

use super::super::validate::Validated;
use super::Profile;

/// Numeric, so that `runAsNonRoot` can be checked without inspecting the image.
const AGENT_UID: i64 = 65532;
/// With this capability the API server refuses `allowPrivilegeEscalation: false`.
const SYS_ADMIN: [&str; 2] = ["SYS_ADMIN", "CAP_SYS_ADMIN"];

/// Context of the agent's container.
pub(super) fn agent() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(drop_all(None)),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(AGENT_UID),
        run_as_non_root: Some(true),
        run_as_user: Some(AGENT_UID),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

/// Context of the pod: the user's; `restricted` adds what that profile requires.
pub(super) fn pod(given: Option<PodSecurityContext>, profile: Profile) -> Option<PodSecurityContext> {
    match profile {
        Profile::Ordinary => given,
        Profile::Restricted => {
            let mut context = given.unwrap_or_default();
            context.run_as_non_root.get_or_insert(true);
            context.seccomp_profile.get_or_insert_with(runtime_default);
            Some(context)
        }
    }
}

/// Context of the user's container.
pub(super) fn program(process: &Validated<'_>, profile: Profile) -> SecurityContext {
    let mut context = process.spec.security_context.clone().unwrap_or_default();
    let of_pod = process.pod.security_context.as_ref();
    if of_pod.is_none_or(|pod| pod.seccomp_profile.is_none()) {
        context.seccomp_profile.get_or_insert_with(runtime_default);
    }
    if !needs_escalation(&context) {
        context.allow_privilege_escalation.get_or_insert(false);
    }
    if profile == Profile::Restricted {
        if of_pod.is_none_or(|pod| pod.run_as_non_root.is_none()) {
            context.run_as_non_root.get_or_insert(true);
        }
        context.capabilities = Some(drop_all(context.capabilities));
    }
    context
}

fn needs_escalation(context: &SecurityContext) -> bool {
    let added = context
        .capabilities
        .iter()
        .flat_map(|capabilities| capabilities.add.iter().flatten());
    context.privileged == Some(true) || added.into_iter().any(|name| SYS_ADMIN.contains(&name.as_str()))
}

fn drop_all(given: Option<Capabilities>) -> Capabilities {
    let mut capabilities = given.unwrap_or_default();
    capabilities.drop.get_or_insert_with(|| vec!["ALL".into()]);
    capabilities
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".into(),
        localhost_profile: None,
    }
}
