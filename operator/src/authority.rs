//! The certificate authority of the installation: the CA, the published bundle and the signing of requests.
