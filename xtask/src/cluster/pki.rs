//! Keys and certificates of the cluster: three authorities that do not trust each other.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

/// One leaf: file name, common name, organization (a group for Kubernetes), names and addresses of a server.
struct Leaf {
    file: &'static str,
    common_name: String,
    organization: &'static str,
    names: Vec<String>,
}

impl Leaf {
    fn client(file: &'static str, common_name: &str, organization: &'static str) -> Self {
        Self {
            file,
            common_name: common_name.to_owned(),
            organization,
            names: Vec::new(),
        }
    }

    fn server(file: &'static str, names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            file,
            common_name: file.to_owned(),
            organization: "",
            names,
        }
    }
}

/// Writes all keys and certificates into `folder`, for an API server at `address`.
pub(super) fn write(folder: &Path, address: &str) -> Result<()> {
    use super::config::{NODE, NODE_IP, SERVICE_IP};
    fs::create_dir_all(folder)?;
    let api_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        address,
        SERVICE_IP,
    ];
    authority(
        folder,
        "ca",
        &[
            Leaf::server("apiserver", &api_names),
            Leaf::server("kubelet-server", &[NODE, NODE_IP]),
            Leaf::client("admin", "kubernetes-admin", "system:masters"),
            Leaf::client(
                "apiserver-kubelet-client",
                "kube-apiserver-kubelet-client",
                "system:masters",
            ),
            Leaf::client("controller-manager", "system:kube-controller-manager", ""),
            Leaf::client("scheduler", "system:kube-scheduler", ""),
            Leaf::client("kube-proxy", "system:kube-proxy", ""),
            Leaf::client("kubelet", &format!("system:node:{NODE}"), "system:nodes"),
        ],
    )?;
    authority(
        folder,
        "front-proxy-ca",
        &[Leaf::client("front-proxy-client", "front-proxy-client", "")],
    )?;
    let etcd_client = Leaf::client("etcd-client", "kube-apiserver", "");
    authority(
        folder,
        "etcd-ca",
        &[Leaf::server("etcd-server", &["localhost", "127.0.0.1"]), etcd_client],
    )?;

    let service_accounts = KeyPair::generate()?;
    write_secret(&folder.join("service-accounts.key"), &service_accounts.serialize_pem())?;
    fs::write(folder.join("service-accounts.pub"), service_accounts.public_key_pem())?;
    Ok(())
}

fn authority(folder: &Path, name: &str, leaves: &[Leaf]) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = params(&format!("remoteprocess-dev {name}"), "");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    fs::write(folder.join(format!("{name}.crt")), params.self_signed(&key)?.pem())?;
    write_secret(&folder.join(format!("{name}.key")), &key.serialize_pem())?;

    let issuer = Issuer::new(params, key);
    for leaf in leaves {
        let key = KeyPair::generate()?;
        let mut params = self::params(&leaf.common_name, leaf.organization);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !leaf.names.is_empty() {
            // etcd's own gateway is a client of itself with the server's certificate: both usages.
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.subject_alt_names = leaf.names.iter().map(|name| alt_name(name)).collect::<Result<_>>()?;
        fs::write(
            folder.join(format!("{}.crt", leaf.file)),
            params.signed_by(&key, &issuer)?.pem(),
        )?;
        write_secret(&folder.join(format!("{}.key", leaf.file)), &key.serialize_pem())?;
    }
    Ok(())
}

fn params(common_name: &str, organization: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if !organization.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    params
}

fn alt_name(name: &str) -> Result<SanType> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into()?),
    })
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(())
}
