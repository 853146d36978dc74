//! Training: the loop and what it is made of.

pub mod cache;
pub mod feed;
pub mod initial;
pub mod nonfinite;
pub mod progress;
pub mod resume;
pub mod state;
pub mod stop;
pub mod trainer;
mod training_state;

pub use feed::Feed;
pub use initial::Initial;
pub use progress::Progress;
pub use trainer::Trainer;
pub use training_state::TrainingState;
