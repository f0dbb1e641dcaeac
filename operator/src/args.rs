//! Command line and environment, and the checked configuration made from them.
