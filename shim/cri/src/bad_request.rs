//! A request that is refused as it stands: the field at fault and the problem.
//!
//! Made by: [`super::convert`]. Rendered by: [`super::status`], which alone picks the gRPC code.
//! Must not know: messages of CRI, gRPC codes.

/// A request that cannot be met as it stands. The text names the field; [`super::status`] adds the RPC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    /// A field is missing or has an invalid value.
    #[error("{field} {problem}")]
    Invalid {
        /// Path of the field in the request: `config.metadata.name`.
        field: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// A field requests something that is not implemented.
    #[error("{field} {problem}")]
    Unsupported {
        /// Path of the field in the request.
        field: String,
        /// What is not implemented, as the rest of a sentence.
        problem: String,
    },
    /// A refusal that the kubelet recognises by the beginning of its message.
    #[error("{field} {problem}")]
    Recognised {
        /// The failure that the kubelet recognises.
        error: KubeletError,
        /// Path of the field in the request.
        field: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
}

impl BadRequest {
    /// The field of an invalid request; `None` for other refusals.
    #[cfg(test)]
    pub(crate) fn invalid_field(&self) -> Option<&str> {
        match self {
            Self::Invalid { field, .. } => Some(field),
            Self::Unsupported { .. } | Self::Recognised { .. } => None,
        }
    }

    /// A field that is missing or has an invalid value.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// A field that requests something that is not implemented.
    pub(crate) fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// Failures that the kubelet recognises by the beginning of a message. Source: cri-api `pkg/errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KubeletError {
    /// A pull failed because the registry did not answer.
    RegistryUnavailable,
    /// A pull was refused by signature policy.
    SignatureValidationFailed,
    /// A recursively read-only mount cannot be made.
    RroUnsupported,
    /// An image volume cannot be mounted.
    ImageVolumeMountFailed,
}

impl KubeletError {
    /// The beginning of the message.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::SignatureValidationFailed => "SignatureValidationFailed",
            Self::RroUnsupported => "RROUnsupported",
            Self::ImageVolumeMountFailed => "ImageVolumeMountFailed",
        }
    }
}
