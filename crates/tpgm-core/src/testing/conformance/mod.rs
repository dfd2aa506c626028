//! The suite that every backend runs: its results against the [oracle](crate::oracle), and the promises of
//! [`Backend`](crate::Backend).
//!
//! A backend's tests contain one line, which makes one test of every function here:
//!
//! ```ignore
//! tpgm_core::conformance_suite!(tpgm_core::Cpu::new());
//! ```
//!
//! Sets are small and awkward: no element, one, three, 123, one less and one more than a piece, scalars, rows that are cut
//! and rows that are not, operands that are not aligned, weights and anchors of different types.

mod blends;
mod data;
mod fixture;
mod methods;
mod projector;
mod promises;
mod pulls;
mod steps;

pub use blends::{averages_match_the_oracle, blends_that_keep_nothing_copy, interpolations_match_the_oracle};
pub use projector::projector_matches_the_oracle;
pub use promises::{
    a_gradient_that_is_not_finite_changes_nothing, order_of_tensors_does_not_matter,
    preparing_a_step_changes_nothing, saved_state_continues_with_the_same_bits,
    the_same_call_gives_the_same_bits, trusted_gradients_give_the_same_bits, wrong_operands_are_named,
};
pub use pulls::{
    a_weight_at_its_goal_is_not_pulled, importance_keeps_its_promises, importance_refuses_by_name,
    pulls_in_groups_match_the_oracle, pulls_match_the_oracle, pulls_of_squares_are_l2_sp,
};
pub use steps::{
    half_precision_without_masters_matches_the_oracle, steps_match_the_oracle,
    steps_with_groups_match_the_oracle, steps_with_options_match_the_oracle,
};

/// Makes a test of every function of [`conformance`](crate::testing::conformance), for the backend that the expression
/// gives. `conformance_suite!(optional expression)` takes an `Option`, for a backend that not every machine has: without it
/// the tests do nothing, and the expression should have printed why.
#[macro_export]
macro_rules! conformance_suite {
    (optional $backend:expr) => {
        $crate::conformance_suite!(@all $backend);
    };
    ($backend:expr) => {
        $crate::conformance_suite!(@all Some($backend));
    };
    (@all $backend:expr) => {
        $crate::conformance_suite!(@tests $backend,
            steps_match_the_oracle,
            steps_with_groups_match_the_oracle,
            steps_with_options_match_the_oracle,
            half_precision_without_masters_matches_the_oracle,
            projector_matches_the_oracle,
            a_gradient_that_is_not_finite_changes_nothing,
            averages_match_the_oracle,
            interpolations_match_the_oracle,
            blends_that_keep_nothing_copy,
            preparing_a_step_changes_nothing,
            order_of_tensors_does_not_matter,
            saved_state_continues_with_the_same_bits,
            the_same_call_gives_the_same_bits,
            trusted_gradients_give_the_same_bits,
            wrong_operands_are_named,
            pulls_match_the_oracle,
            pulls_in_groups_match_the_oracle,
            pulls_of_squares_are_l2_sp,
            importance_keeps_its_promises,
            importance_refuses_by_name,
            a_weight_at_its_goal_is_not_pulled,
        );
    };
    (@tests $backend:expr, $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                if let Some(backend) = $backend {
                    $crate::testing::conformance::$name(&backend);
                }
            }
        )*
    };
}
