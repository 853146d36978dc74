//! The streams of a clip: one list, which all that goes over the streams follows.

use std::path::Path;

use super::Data;

/// One of the sequences that a clip is seen as.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// What messages and tables call it.
    pub name: &'static str,
    /// What its frames are.
    pub kind: StreamKind,
    /// Its projector's name in the network.
    pub projector: &'static str,
    /// The field that names its folder.
    pub key: &'static str,
    /// The folder of its files.
    pub dir: fn(&Data) -> &Path,
}

/// What a stream's frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Images, a file each; they go through a backbone of this name in the network.
    Images {
        /// Its name in the network.
        backbone: &'static str,
    },
    /// Landmarks, a file a clip.
    Pose,
}

impl Stream {
    /// The name of its backbone, where it has one.
    #[must_use]
    pub fn backbone(&self) -> Option<&'static str> {
        match self.kind {
            StreamKind::Images { backbone } => Some(backbone),
            StreamKind::Pose => None,
        }
    }
}

/// All streams, in the order in which the network joins them.
pub const STREAMS: &[Stream] = &[
    Stream {
        name: "face",
        kind: StreamKind::Images { backbone: "face_backbone" },
        projector: "face_projector",
        key: "data.face_dir",
        dir: |data| &data.face_dir,
    },
    Stream {
        name: "hand_left",
        kind: StreamKind::Images { backbone: "hand_backbone_left" },
        projector: "hand_left_projector",
        key: "data.hand_left_dir",
        dir: |data| &data.hand_left_dir,
    },
    Stream {
        name: "hand_right",
        kind: StreamKind::Images { backbone: "hand_backbone_right" },
        projector: "hand_right_projector",
        key: "data.hand_right_dir",
        dir: |data| &data.hand_right_dir,
    },
    Stream {
        name: "pose",
        kind: StreamKind::Pose,
        projector: "pose_projector",
        key: "data.pose_dir",
        dir: |data| &data.pose_dir,
    },
];

/// Those whose frames are images, in order.
pub fn image_streams() -> impl Iterator<Item = &'static Stream> + Clone {
    STREAMS.iter().filter(|stream| stream.kind != StreamKind::Pose)
}

/// Whether the field `key` names a folder of images.
#[must_use]
pub fn is_image_folder(key: &str) -> bool {
    image_streams().any(|stream| stream.key == key)
}

/// The one whose frames are landmarks.
#[must_use]
pub fn pose_stream() -> &'static Stream {
    const POSE: &Stream = {
        let mut at = 0;
        while !matches!(STREAMS[at].kind, StreamKind::Pose) {
            at += 1;
        }
        &STREAMS[at]
    };
    POSE
}
