//! The epoch and in-sync protocol of docs/protocol.md as a small model, explored exhaustively.
//!
//! Called by the program `meshstor-model` and by `cargo xtask model`. One volume, three replicas, two nodes that may be
//! the consumer. It shows that the *rules* keep P1, P2 and P8 within its bounds, and that each rule is needed: with any
//! one of them broken the checker finds an execution that breaks a promise. It never looks at the product's code; that is
//! the simulator's work.

pub mod actions;
pub mod check;
pub mod properties;
pub mod rules;
pub mod state;
pub mod steps;

pub use steps::Protocol;

use actions::Action;
use state::State;
use stateright::{Model, Property};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::healthy(&self.bounds)]
    }

    fn actions(&self, state: &State, list: &mut Vec<Action>) {
        // What follows a broken promise proves nothing more.
        if !properties::violated(state) {
            actions::all(&self.bounds, self.broken, list);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.step(state, action)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        properties::all()
    }
}
