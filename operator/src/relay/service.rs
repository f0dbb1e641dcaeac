//! The gRPC service of the main listener.
