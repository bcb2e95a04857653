use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::timeout::Timeout;
use tower::util::{AndThen, Either, MapErr, MapFuture, MapResponse, MapResult, Then};

use crate::{BatchHandlerFn, DeadLetterService, HandlerFn, IdempotencyService, RetryService};

/// A handler that reads messages of the type `T`, as far as the compiler can tell: what
/// [`Router::route`](crate::Router::route) takes, so that no route gives messages of one type to
/// the handler of another.
///
/// A [`handler_fn`](crate::handler_fn) and a [`batch_handler_fn`](crate::batch_handler_fn) handle
/// the message that their function takes, and so they do under the layers of this library and of
/// tower. For a service of your own, or a layer of your own around any handler, say it:
///
/// ```
/// # extern crate anybroker_core as anybroker;
/// use anybroker::HandlerOf;
///
/// #[derive(Clone)]
/// struct Audited<S>(S);
///
/// // Beside `impl<S: Handler> Service<Message> for Audited<S>`:
/// impl<T, S: HandlerOf<T>> HandlerOf<T> for Audited<S> {}
/// ```
#[diagnostic::on_unimplemented(
    message = "the handler of this route does not take `{T}`",
    label = "not known to handle `{T}`",
    note = "the function in `handler_fn` takes the message of its route: \
            `.route::<{T}, _>(handler_fn(|message: {T}, _| async {{ .. }}))`",
    note = "for a service or a layer of your own, `impl HandlerOf<{T}>` for it, or use \
            `route_service::<{T}, _>(..)`, which checks nothing"
)]
pub trait HandlerOf<T> {}

impl<F, T> HandlerOf<T> for HandlerFn<F, T> {}
impl<F, T> HandlerOf<T> for BatchHandlerFn<F, T> {}

/// Layers hand the message on as it is.
macro_rules! handlers_under_a_layer {
    ($($service:ident < S $(, $parameter:ident)* >;)*) => {$(
        impl<T, S: HandlerOf<T> $(, $parameter)*> HandlerOf<T> for $service<S $(, $parameter)*> {}
    )*};
}

handlers_under_a_layer! {
    AndThen<S, F>;
    ConcurrencyLimit<S>;
    DeadLetterService<S>;
    IdempotencyService<S>;
    LoadShed<S>;
    MapErr<S, F>;
    MapFuture<S, F>;
    MapResponse<S, F>;
    MapResult<S, F>;
    RetryService<S>;
    Then<S, F>;
    Timeout<S>;
}

impl<T, A: HandlerOf<T>, B: HandlerOf<T>> HandlerOf<T> for Either<A, B> {}
