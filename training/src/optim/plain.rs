//! Arithmetic on the numbers of tensors themselves: one pass over memory in place of an operation for each step of a
//! formula.
#![allow(
    unsafe_code,
    reason = "tch gives the memory of a tensor as a raw pointer"
)]

use std::slice;

use tch::{Device, Kind, Tensor};

/// Numbers from which on a tensor is shared by threads.
const SHARED_FROM: usize = 1 << 18;

/// A kind of numbers in a tensor.
pub(super) trait Number: Copy + Send + Sync {
    const KIND: Kind;

    /// Returns the nearest number of this kind.
    fn of(number: f64) -> Self;
}

impl Number for f32 {
    const KIND: Kind = Kind::Float;

    fn of(number: f64) -> Self {
        number as Self
    }
}

impl Number for f64 {
    const KIND: Kind = Kind::Double;

    fn of(number: f64) -> Self {
        number
    }
}

/// Returns true where tensors have the same shape and order of numbers in the memory of the processor, without gaps.
pub(super) fn are_alike(tensors: &[&Tensor]) -> bool {
    let first = tensors[0];
    let (size, strides) = (first.size(), first.stride());
    first.device() == Device::Cpu
        && matches!(first.kind(), Kind::Float | Kind::Double)
        && is_dense(&size, &strides)
        && tensors[1..].iter().all(|it| {
            it.kind() == first.kind()
                && it.device() == Device::Cpu
                && it.size() == size
                && it.stride() == strides
        })
}

fn is_dense(size: &[i64], strides: &[i64]) -> bool {
    let mut axes: Vec<usize> = (0..size.len()).filter(|&axis| size[axis] != 1).collect();
    axes.sort_by_key(|&axis| strides[axis]);
    let mut expected = 1;
    axes.iter().all(|&axis| {
        let fits = strides[axis] == expected;
        expected *= size[axis];
        fits
    })
}

/// Calls `work` with the numbers of tensors that are alike; several threads share large ones. Returns false, and does
/// nothing, where the numbers are of another kind.
pub(super) fn for_each<T: Number, const N: usize>(
    tensors: [&Tensor; N],
    work: impl Fn([&mut [T]; N]) + Sync,
) -> bool {
    if tensors[0].kind() != T::KIND || !are_alike(&tensors) {
        return false;
    }
    let length = tensors[0].numel();
    if length == 0 {
        return true;
    }
    // SAFETY: each tensor has `length` numbers of this kind without gaps in the memory of the processor (`are_alike`),
    // and is alive in `tensors` until this function returns. They are a parameter, its gradient and its running means,
    // which never share memory, and no other thread changes them during a step of the optimiser.
    let mut rest = tensors
        .map(|tensor| unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), length) });
    let threads = tch::get_num_threads().max(1) as usize;
    if threads == 1 || length < SHARED_FROM {
        work(rest);
        return true;
    }
    let share = length.div_ceil(threads);
    std::thread::scope(|scope| {
        while !rest[0].is_empty() {
            let at = share.min(rest[0].len());
            let mut tails = Vec::with_capacity(N);
            let heads = rest.map(|numbers| {
                let (head, tail) = numbers.split_at_mut(at);
                tails.push(tail);
                head
            });
            scope.spawn(|| work(heads));
            match <[&mut [T]; N]>::try_from(tails) {
                Ok(tails) => rest = tails,
                Err(_) => return,
            }
        }
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros(size: &[i64]) -> Tensor {
        Tensor::zeros(size, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn long_tensors_are_shared_by_threads_without_gaps() {
        let before = tch::get_num_threads();
        tch::set_num_threads(3);
        let (one, other) = (zeros(&[1000, 1001]), zeros(&[1000, 1001]));
        let is_done = for_each::<f32, 2>([&one, &other], |[one, other]| {
            one.iter_mut().for_each(|it| *it += 1.0);
            other.iter_mut().for_each(|it| *it += 2.0);
        });
        tch::set_num_threads(before);
        assert!(is_done);
        assert_eq!(one.sum(Kind::Double).double_value(&[]), 1_001_000.0);
        assert_eq!(other.sum(Kind::Double).double_value(&[]), 2_002_000.0);
    }

    #[test]
    fn tensors_of_another_order_or_with_gaps_are_left_alone() {
        let untouched = |one: &Tensor, other: &Tensor| {
            !for_each::<f32, 2>([one, other], |[one, _]| one[0] = 1.0)
        };
        let square = zeros(&[4, 4]);
        assert!(untouched(&square, &zeros(&[4, 4]).transpose(0, 1)));
        assert!(untouched(&zeros(&[4, 8]).slice(1, 0, 4, 1), &square));
        assert!(untouched(&square, &zeros(&[4, 4]).to_kind(Kind::Double)));
        // Both in the other order are alike.
        let turned = || zeros(&[4, 3]).transpose(0, 1);
        assert!(!untouched(&turned(), &turned()));
    }
}
