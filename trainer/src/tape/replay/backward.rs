//! The backward pass: an exhaustive match over [`Op`], the last operation first.

use super::{Place, Replay};
use crate::backend::{Backend, Write};
use crate::params::Params;
use crate::tape::record::{classes, embed, heads, stretches};
use crate::tape::{Op, Step};

impl<B: Backend> Replay<B> {
    /// The backward pass of an affine map and of the nonlinearity before it, if that is what comes next.
    fn reverse_hidden(
        &mut self,
        op: usize,
        next: Option<Step>,
        backend: &B,
        params: &Params<B>,
        place: Place<'_>,
        grads: &mut B::Floats,
    ) -> bool {
        let (after, before) = match next {
            Some(Step::Reverse { op: next, .. }) => (*self.program.op(op), *self.program.op(next)),
            _ => return false,
        };
        if !before.precedes(&after) {
            return false;
        }
        match (before, after) {
            (Op::Activation { x: hidden, hidden: s, .. }, Op::Linear { x, linear, out }) => {
                let rows = self.program.shape.rows();
                self.make_gradient_in_scratch(hidden, |this, d_hidden, scratch| {
                    let (hidden, x, d_out) = (this.value(hidden), this.value(x), this.gradient(out));
                    backend.activation_linear_backward(
                        rows, s, hidden, x, &linear, params, d_out, d_hidden, grads, scratch,
                    );
                });
            }
            (Op::Activation { x: hidden, hidden: s, site, .. }, Op::Experts { x, bank, router, out, .. }) => {
                let s = (s, self.hidden_mask(place, site, x, s.width));
                self.make_gradient_in_scratch(hidden, |this, d_hidden, scratch| {
                    let (hidden, x, d_out) = (this.value(hidden), this.value(x), this.gradient(out));
                    let routing = &this.routings[router];
                    backend.activation_experts_backward(
                        routing, s, hidden, x, &bank, params, d_out, d_hidden, grads, scratch,
                    );
                });
            }
            _ => return false,
        }
        true
    }

    /// The backward pass of the mean over `total_rows` rows; gradients of parameters are added to `grads`.
    pub fn backward(
        &mut self,
        backend: &B,
        params: &Params<B>,
        place: Place<'_>,
        total_rows: usize,
        grads: &mut B::Floats,
    ) {
        let rows = self.program.shape.rows();
        let mut index = 0;
        while index < self.program.backward.len() {
            let next = self.program.backward.get(index + 1).copied();
            let (op, [write, second_write]) = match self.program.backward[index] {
                Step::Reverse { op, writes } => (op, writes),
                Step::Again { op } => {
                    let next = match next {
                        Some(Step::Again { op }) => Some(op),
                        _ => None,
                    };
                    index += self.carry_out_next(op, next, backend, params, place);
                    continue;
                }
            };
            if write == Write::Set && self.reverse_hidden(op, next, backend, params, place, grads) {
                index += 2;
                continue;
            }
            index += 1;
            match *self.program.op(op) {
                Op::Embed { out, site } => {
                    let (shape, mask) =
                        (embed(&self.program.config, self.program.shape), self.row_mask(place, site, out));
                    let mut scratch = std::mem::take(&mut self.scratch);
                    let (ids, d_out) = (&self.inputs, self.gradient(out));
                    backend.embed_backward(&shape, ids, &params.layout, mask, d_out, grads, &mut scratch);
                    self.scratch = scratch;
                }
                Op::Norm { x, norm, out, moments } => {
                    let shape = self.rows_shape(x);
                    self.make_gradient_in_scratch(x, |this, d_x, scratch| {
                        let (moments, d_out) = (&this.stats[moments.index()], this.gradient(out));
                        let d_x = (d_x, write);
                        backend.norm_backward(
                            &shape,
                            this.value(x),
                            &norm,
                            params,
                            moments,
                            d_out,
                            d_x,
                            grads,
                            scratch,
                        );
                    });
                }
                Op::Linear { x, linear, out } => {
                    self.make_gradient_in_scratch(x, |this, d_x, scratch| {
                        let (x, d_out) = (this.value(x), this.gradient(out));
                        backend.linear_backward(
                            rows,
                            x,
                            &linear,
                            params,
                            d_out,
                            (d_x, write),
                            grads,
                            scratch,
                        );
                    });
                }
                Op::Attention { qkv, out, kept, site } => {
                    assert_eq!(write, Write::Set, "attention is the only reader of its projection");
                    let shape = heads(&self.program.config, self.program.shape);
                    let mask = self.score_mask(place, site);
                    self.make_gradient_in_scratch(qkv, |this, d_qkv, scratch| {
                        let (kept, d_out) = (&this.stats[kept.index()], this.gradient(out));
                        let (qkv, out) = (this.value(qkv), this.value(out));
                        backend.attention_backward(&shape, qkv, out, kept, mask, d_out, d_qkv, scratch);
                    });
                }
                Op::QueryKeyNorm { qkv, norms, out, kept } => {
                    assert_eq!(write, Write::Set, "the norm is the only reader of its projection");
                    let shape = stretches(&self.program.config, self.program.shape);
                    self.make_gradient_in_scratch(qkv, |this, d_qkv, scratch| {
                        let (qkv, kept, d_out) =
                            (this.value(qkv), &this.stats[kept.index()], this.gradient(out));
                        backend.query_key_norm_backward(
                            &shape, qkv, &norms, params, kept, d_out, d_qkv, grads, scratch,
                        );
                    });
                }
                Op::Rotate { qkv, out } => {
                    assert_eq!(write, Write::Set, "rotation is the only reader of its projection");
                    let shape = heads(&self.program.config, self.program.shape);
                    self.make_gradient(qkv, |this, d_qkv| {
                        backend.rotate(&shape, &this.rotary, true, this.gradient(out), d_qkv);
                    });
                }
                Op::Activation { x, out, hidden, site } => {
                    assert_eq!(write, Write::Set, "the nonlinearity is the only reader of its input");
                    let mask = self.hidden_mask(place, site, out, hidden.width);
                    // What shares the result's slot is reversed there.
                    let in_place = self.program.plan.shares_gradient(x, out);
                    self.make_gradient(x, |this, d_x| {
                        let d_out = (!in_place).then(|| this.gradient(out));
                        backend.activation_backward(hidden, this.value(x), mask, d_out, d_x);
                    });
                }
                Op::Route { x, bank, router, out, kept, site } => {
                    let shape = self.program.routers[router];
                    let disturbance = self.disturbance(place, &shape, site);
                    let mixing = &self.program.mixing;
                    let factor = mixing.balance * shape.count as f32 / total_rows as f32;
                    let z_factor = 2.0 * mixing.router_z / total_rows as f32;
                    self.make_gradient_in_scratch(x, |this, d_x, scratch| {
                        backend.route_backward(
                            &shape,
                            this.value(x),
                            &bank,
                            params,
                            &disturbance,
                            (&this.shares[router], factor, z_factor),
                            &this.stats[kept.index()],
                            &this.routings[router],
                            this.gradient(out),
                            (d_x, write),
                            grads,
                            scratch,
                        );
                    });
                }
                Op::Dispatch { x, router, out } => self.make_gradient(x, |this, d_x| {
                    let shape = &this.program.routers[router];
                    let d_out = this.gradient(out);
                    backend.dispatch_backward(shape, &this.routings[router], d_out, (d_x, write));
                }),
                Op::Experts { x, bank, way, router, out } => {
                    assert_eq!(write, Write::Set, "experts are the only readers of their input");
                    self.make_gradient_in_scratch(x, |this, d_x, scratch| {
                        let (x, d_out) = (this.value(x), this.gradient(out));
                        let routing = &this.routings[router];
                        backend.experts_backward(routing, x, &bank, way, params, d_out, d_x, grads, scratch);
                    });
                }
                Op::Combine { x, weights, router, out } => {
                    let only = [write, second_write] == [Write::Set; 2];
                    assert!(only, "the sum is the only reader of the experts' results and weights");
                    let slot = self.gradient_slot(weights);
                    let mut d_weights = self.take(slot);
                    self.make_gradient(x, |this, d_x| {
                        let (x, weights, d_out) = (this.value(x), this.value(weights), this.gradient(out));
                        let (shape, routing) = (&this.program.routers[router], &this.routings[router]);
                        backend.combine_backward(shape, routing, x, weights, d_out, d_x, &mut d_weights);
                    });
                    self.slots[slot] = Some(d_weights);
                }
                Op::Add { stream, branch, out, site } => {
                    let mask = self.row_mask(place, site, out);
                    // What shares the sum's slot is there already.
                    if !self.program.plan.shares_gradient(stream, out) {
                        self.make_gradient(stream, |this, d_stream| {
                            backend.add_backward(rows, this.gradient(out), None, (d_stream, write));
                        });
                    }
                    if !self.program.plan.shares_gradient(branch, out) {
                        self.make_gradient(branch, |this, d_branch| {
                            backend.add_backward(rows, this.gradient(out), mask, (d_branch, second_write));
                        });
                    }
                }
                Op::Loss { x, head } => {
                    let shape = classes(&self.program.config, self.program.shape);
                    let scale = 1.0 / total_rows as f32;
                    let mut losses = std::mem::take(&mut self.losses);
                    self.make_gradient_in_scratch(x, |this, d_x, scratch| {
                        backend.loss_and_gradient(
                            &shape,
                            scale,
                            this.value(x),
                            &head,
                            params,
                            &this.targets,
                            &mut losses,
                            (d_x, write),
                            grads,
                            scratch,
                        );
                    });
                    self.losses = losses;
                }
            }
        }
    }
}
