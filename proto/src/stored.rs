//! The JSON form of the messages that the archive stores: enums by name, hashes in hexadecimal.

use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serializer};

/// A field of the enum `E`. Names never change; an unknown name reads as unspecified.
pub(crate) struct Name<E>(PhantomData<E>);

impl<E: TryFrom<i32> + Default + FromStr + Into<&'static str> + Into<i32>> Name<E> {
    pub(crate) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(E::try_from(*value).unwrap_or_default().into())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(name.parse::<E>().unwrap_or_default().into())
    }
}

/// Bytes in hexadecimal; what is not hexadecimal reads as no bytes.
pub(crate) mod hexadecimal {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Ok(hex::decode(String::deserialize(deserializer)?)
            .unwrap_or_default()
            .into())
    }
}
