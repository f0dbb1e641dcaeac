//! Who may call what: the role of the peer and Kubernetes RBAC.
