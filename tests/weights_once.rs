//! A layer holds its weights once, whatever was called: counted by the allocator of this test program.

use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use headwise::kernels::activation::Activation;
use headwise::nn::attention::AttentionConfig;
use headwise::nn::encoder::{Encoder, StackCall};
use headwise::nn::encoder_layer::LayerConfig;
use headwise::nn::init::Init;
use headwise::nn::norm::NormKind;
use headwise::nn::state::{Loader, Module};
use headwise::nn::tokens::Layout;

/// The system's allocator, with a count of the bytes that are out and of the most that ever were.
struct Counting;

static OUT: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        MOST.fetch_max(OUT.fetch_add(block.size(), Relaxed) + block.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        OUT.fetch_sub(block.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, block) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const D: usize = 512;
/// Beside the weights: biases, norms, names, the pool and what it keeps for the next call.
const REST: usize = 2 << 20;

fn stack(seed: u64) -> Encoder<f32> {
    let config = LayerConfig {
        attention: AttentionConfig::new(D, 8, None, None, (None, None), true, 0.0).unwrap(),
        d_ff: 4 * D,
        activation: Activation::Gelu,
        norm: NormKind::Layer,
        norm_first: false,
        layer_norm_eps: 1e-5,
        gated: false,
    };
    Encoder::new(4, config, false, None, &mut Init::new(seed)).unwrap()
}

fn run(stack: &Encoder<f32>) -> Vec<f32> {
    let call = StackCall {
        masks: &[],
        causal: false,
        window: (None, None),
        head_mask: None,
        weights: &[],
        hidden_states: false,
        dropout: None,
    };
    let rows = (0..7 * D).map(|i| (i % 13) as f32 - 6.0).collect();
    stack.forward(rows, &Layout::dense(vec![7]), &call).unwrap().rows
}

#[test]
fn weights_are_held_once_whatever_was_called() {
    let before = OUT.load(Relaxed);
    let held = || OUT.load(Relaxed) - before;
    let own = stack(1);
    let bytes = own.num_parameters() * size_of::<f32>();
    assert!(bytes > 20 * REST);
    assert!((bytes..bytes + REST).contains(&held()), "made: {} of {bytes}", held());
    let first = run(&own);
    assert!(held() < bytes + REST, "called: {} of {bytes}", held());

    let state = own.state().unwrap();
    assert_eq!(state.iter().map(|(_, tensor)| tensor.data.len()).sum::<usize>() * 4, bytes);
    drop(state);
    assert_eq!(run(&own), first);
    assert!(held() < bytes + REST, "after a state: {} of {bytes}", held());

    // A stack without a head shares the layers that are whole: it adds the attention of one layer, no more.
    let pruned = own.prune(&[(2, vec![0])]).unwrap();
    assert_ne!(run(&pruned), first);
    assert!(held() < bytes + bytes / 8 + REST, "pruned: {} of {bytes}", held());
    drop(pruned);

    // While a state is loaded there are the old layers, and each parameter either as given or in its new place.
    let state = stack(2).state().unwrap();
    MOST.store(OUT.load(Relaxed), Relaxed);
    let other = own.load("", &mut Loader::new(state).unwrap()).unwrap();
    let most = MOST.load(Relaxed) - before;
    assert!(most < 2 * bytes + bytes / 8 + REST, "loading: {most} of {bytes}");
    drop(own);
    assert_ne!(run(&other), first);
    assert!(held() < bytes + REST, "loaded: {} of {bytes}", held());
}
