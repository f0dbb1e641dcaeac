//! The enrol listener: an agent trades its projected token for a certificate.
