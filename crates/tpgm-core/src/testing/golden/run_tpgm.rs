//! TPGM cases.

use super::case::{NormName, field_error, required};
use super::compare::{Comparer, Presence};
use super::error::GoldenError;
use super::run::{Context, value};
use super::subject::{Observed, ProjectorSubject, Quantity};
use crate::constraint::{RadiusAdam, Tpgm};
use crate::norm::Norm;
use crate::oracle::{largest, smallest};

pub(super) fn run<'a>(context: &Context<'a>) -> Result<Comparer<'a>, GoldenError> {
    let mut run = Run::new(context)?;
    let rounds = required(context.case.rounds.as_ref(), context.json, "rounds")?;
    let params = context.params();
    for (r, round) in (1..).zip(rounds) {
        let prefix = format!("round{r}");
        run.weights = context.file.get_params(&format!("{prefix}/start"), params)?;
        let iters = if round.apply_only { 0 } else { round.iters };
        let closing = format!("{prefix}/apply");
        if iters == 0 {
            run.check_before(&closing)?;
            run.traverse(&closing, |projector, weights, anchors| projector.project(weights, anchors))?;
        } else {
            run.check_before(&format!("{prefix}/iter01"))?;
            let begun = run.projector.begin(&mut run.weights, &run.anchors);
            context.subject(&format!("{prefix}: begin"), begun)?;
            for i in 1..=iters {
                let prefix = format!("{prefix}/iter{i:02}");
                // `begin` may set the first radius already.
                if i > 1 {
                    run.check_before(&prefix)?;
                }
                run.iteration(&prefix)?;
            }
            run.check_before(&closing)?;
            run.traverse(&closing, |projector, weights, anchors| projector.finish(weights, anchors))?;
        }
        for (param, weight) in params.iter().zip(&run.weights) {
            let name = format!("{prefix}/weight/{}", param.name);
            run.comparer.check("weight", &name, value(weight), Presence::Required)?;
        }
    }
    Ok(run.comparer)
}

struct Run<'a, 'c> {
    context: &'c Context<'a>,
    comparer: Comparer<'a>,
    projector: Box<dyn ProjectorSubject>,
    weights: Vec<Vec<f64>>,
    anchors: Vec<Option<Vec<f64>>>,
    evaluator: Option<super::evaluate::Evaluator<'a>>,
}

impl<'a, 'c> Run<'a, 'c> {
    fn new(context: &'c Context<'a>) -> Result<Self, GoldenError> {
        let case = context.case;
        let adam = required(case.adam, context.json, "adam")?;
        if adam.weight_decay != 0.0 {
            let problem = format!("is {}, but the radii have none", adam.weight_decay);
            return Err(field_error(context.json, "adam.weight_decay", problem));
        }
        let tpgm = Tpgm {
            norm: match required(case.norm, context.json, "norm")? {
                NormName::L2 => Norm::L2,
                NormName::Mars => Norm::Mars,
            },
            adam: RadiusAdam {
                lr: required(case.proj_lr, context.json, "proj_lr")?,
                beta1: adam.betas[0],
                beta2: adam.betas[1],
                eps: adam.eps,
            },
        };
        let set = context.set(false)?;
        let anchors = context.file.get_params("anchor", context.params())?;
        Ok(Self {
            context,
            comparer: Comparer::new(context.file),
            projector: context.subject("new projector", context.subject.projector(&set, tpgm))?,
            weights: Vec::new(),
            anchors: anchors.into_iter().map(Some).collect(),
            evaluator: context.evaluator()?,
        })
    }

    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed, GoldenError> {
        let call = format!("observe {quantity:?} of `{}`", self.context.params()[tensor].name);
        self.context.subject(&call, self.projector.observe(tensor, quantity))
    }

    fn check(
        &mut self,
        prefix: &str,
        part: &'static str,
        tensor: usize,
        observed: Observed,
        presence: Presence,
    ) -> Result<(), GoldenError> {
        let name = format!("{prefix}/{part}/{}", self.context.params()[tensor].name);
        self.comparer.check(part, &name, observed, presence)
    }

    fn projected(&self) -> impl Iterator<Item = usize> + use<'a> {
        let params = self.context.params();
        (0..params.len()).filter(|&i| params[i].constrained())
    }

    /// The radii before whatever comes next.
    fn check_before(&mut self, prefix: &str) -> Result<(), GoldenError> {
        for i in self.projected() {
            let before = self.observe(i, Quantity::Radius)?;
            self.check(prefix, "gamma_before", i, before, Presence::Required)?;
        }
        Ok(())
    }

    /// One call that clips all radii and writes projected weights, and what the file says about it.
    fn traverse(
        &mut self,
        prefix: &str,
        call: impl Fn(&mut dyn ProjectorSubject, &mut [Vec<f64>], &[Option<Vec<f64>>]) -> crate::error::Result<()>,
    ) -> Result<(), GoldenError> {
        let called = call(self.projector.as_mut(), &mut self.weights, &self.anchors);
        self.context.subject(prefix, called)?;
        for i in self.projected() {
            for (part, quantity) in [
                ("gamma_preclip", Quantity::RadiusUnclipped),
                ("gamma_used", Quantity::Radius),
                ("norm", Quantity::Norms),
                ("ratio", Quantity::Ratios),
            ] {
                let observed = self.observe(i, quantity)?;
                self.check(prefix, part, i, observed, Presence::Required)?;
            }
            let name = &self.context.params()[i].name;
            let (norm, ratio) =
                (self.observe(i, Quantity::LargestNorm)?, self.observe(i, Quantity::SmallestRatio)?);
            self.comparer.check_reduced("largest norm", &format!("{prefix}/norm/{name}"), norm, largest)?;
            self.comparer.check_reduced(
                "smallest ratio",
                &format!("{prefix}/ratio/{name}"),
                ratio,
                smallest,
            )?;
        }
        Ok(())
    }

    /// One projection update.
    fn iteration(&mut self, prefix: &str) -> Result<(), GoldenError> {
        self.traverse(prefix, |projector, weights, anchors| projector.apply(weights, anchors))?;
        for i in self.projected() {
            self.check(prefix, "weight", i, value(&self.weights[i]), Presence::Required)?;
        }
        let grads = self.gradients(prefix)?;
        let updated = self.projector.update(&mut self.weights, &grads, &self.anchors);
        self.context.subject(prefix, updated)?;
        for i in self.projected() {
            // A parameter outside the graph has no radius gradient, or one of 0; its radius and moments stay.
            let presence = match grads[i] {
                Some(_) => Presence::Required,
                None => Presence::Optional,
            };
            for (part, quantity) in [
                ("gamma_grad", Quantity::RadiusGrad),
                ("gamma_after", Quantity::Radius),
                ("gamma_m", Quantity::RadiusM),
                ("gamma_v", Quantity::RadiusV),
            ] {
                let observed = match self.observe(i, quantity)? {
                    Observed::Absent if grads[i].is_none() => value(&[0.0]),
                    observed => observed,
                };
                self.check(prefix, part, i, observed, presence)?;
            }
        }
        Ok(())
    }

    /// Gradients of the held-out loss at the projected weights, for the projected parameters.
    fn gradients(&mut self, prefix: &str) -> Result<Vec<Option<Vec<f64>>>, GoldenError> {
        let (file, params) = (self.context.file, self.context.params());
        let Some(evaluator) = &mut self.evaluator else {
            file.skip(&format!("{prefix}/loss"));
            return params
                .iter()
                .map(|param| match param.constrained() {
                    true => file.find_param(&format!("{prefix}/weight_grad"), param),
                    false => Ok(None),
                })
                .collect();
        };
        let (loss, mut grads) = evaluator.next(&self.weights);
        let name = format!("{prefix}/loss");
        self.comparer.check("loss", &name, value(&[loss]), Presence::Required)?;
        for (i, param) in params.iter().enumerate() {
            if param.constrained() {
                let grad = grads[i].clone().into();
                self.check(prefix, "weight_grad", i, grad, Presence::AsComputed)?;
            } else {
                grads[i] = None;
            }
        }
        Ok(grads)
    }
}
