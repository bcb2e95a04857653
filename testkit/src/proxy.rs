use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// A way to a server on which things go wrong: its connections are cut, or fall silent.
///
/// What it swallows is held back: passed on as soon as the way is free again, as TCP does after a
/// while without a network, and lost when the connection is cut before. So to lose an answer,
/// swallow it and cut. Connections can be made all the time. Dropped, it cuts all of them.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    way: watch::Sender<Way>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    cuts: u64,
    swallows_requests: bool,
    swallows_answers: bool,
    /// How long each piece of what comes is held, in either direction.
    latency: Duration,
}

impl Proxy {
    /// Starts one before the server of this URL, on any port of the loopback.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn start(url: &str) -> io::Result<Self> {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, url)
    }

    /// Starts one before the server of this URL, on a port that had to be known before the server.
    ///
    /// # Errors
    /// Those of the listener.
    pub fn on(listener: TcpListener, url: &str) -> io::Result<Self> {
        let server = server_of(url).to_owned();
        let address = listener.local_addr()?;
        let url = url.replacen(&server, &address.to_string(), 1);
        let (way, watched) = watch::channel(Way::default());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server.clone(), watched.clone()));
            }
        });
        Ok(Self { url, way, accepting })
    }

    /// The server's URL, with this way to it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts all connections, with what was swallowed on them; others can be made at once.
    pub fn cut(&self) {
        self.way.send_modify(|way| way.cuts += 1);
    }

    /// Passes nothing on, in either direction.
    pub fn swallow(&self) {
        self.way.send_modify(|way| (way.swallows_requests, way.swallows_answers) = (true, true));
    }

    /// Passes on what clients send, and nothing that the server answers.
    pub fn swallow_answers(&self) {
        self.way.send_modify(|way| (way.swallows_requests, way.swallows_answers) = (false, true));
    }

    /// Passes everything on this much later, as over a long way.
    pub fn slow(&self, latency: Duration) {
        self.way.send_modify(|way| way.latency = latency);
    }

    /// Passes everything on again, first what was swallowed, and without latency.
    pub fn pass(&self) {
        self.way.send_modify(|way| *way = Way { cuts: way.cuts, ..Way::default() });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Host and port: what follows scheme and login, up to a path or options.
fn server_of(url: &str) -> &str {
    let url = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = url.split(['/', '?']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

async fn connection(client: TcpStream, server: String, mut way: watch::Receiver<Way>) {
    let cuts = way.borrow().cuts;
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((requests, to_client), (answers, to_server)) = (client.into_split(), server.into_split());
    let swallows_requests = |way: Way| (way.cuts == cuts).then_some(way.swallows_requests);
    let swallows_answers = |way: Way| (way.cuts == cuts).then_some(way.swallows_answers);
    let requests = pass_on(requests, to_server, way.clone(), swallows_requests);
    let answers = pass_on(answers, to_client, way.clone(), swallows_answers);
    tokio::select! {
        _ = async { tokio::try_join!(requests, answers) } => {}
        // While it waits to write.
        _ = way.wait_for(|way| way.cuts != cuts) => {}
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    swallows: impl Fn(Way) -> Option<bool>,
) -> io::Result<()> {
    let mut held = VecDeque::<(Instant, Vec<u8>)>::new();
    let mut read = Vec::with_capacity(64 * 1024);
    let mut has_ended = false;
    loop {
        let way_now = *way.borrow_and_update();
        // A cut that is followed by other changes is still one.
        let Some(swallows) = swallows(way_now) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if !swallows {
            while let Some((_, bytes)) = held.front().filter(|(due, _)| *due <= Instant::now()) {
                to.write_all(bytes).await?;
                held.pop_front();
            }
            if has_ended && held.is_empty() {
                return to.shutdown().await;
            }
        }
        let due = held.front().filter(|_| !swallows).map(|(due, _)| *due);
        tokio::select! {
            count = from.read_buf(&mut read), if !has_ended => {
                has_ended = count? == 0;
                held.push_back((Instant::now() + way_now.latency, read.clone()));
                read.clear();
            }
            changed = way.changed() => changed.map_err(io::Error::other)?,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// A server that counts what it gets, and answers each byte.
    async fn server() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("echo://app:x@{}/path", listener.local_addr().expect("an address"));
        let (got, count) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let got = got.clone();
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        got.send_modify(|count| *count += 1);
                        stream.write_u8(byte).await.expect("a client");
                    }
                });
            }
        });
        (url, count)
    }

    async fn client(proxy: &Proxy) -> TcpStream {
        let address: SocketAddr = server_of(proxy.url()).parse().expect("an address");
        TcpStream::connect(address).await.expect("a connection")
    }

    #[tokio::test]
    async fn what_is_swallowed_comes_late_or_never() {
        let (url, mut got) = server().await;
        let proxy = Proxy::start(&url).await.expect("a proxy");
        assert!(proxy.url().starts_with("echo://app:x@127.0.0.1:"), "{}", proxy.url());
        assert!(proxy.url().ends_with("/path"), "{}", proxy.url());
        let mut stream = client(&proxy).await;
        stream.write_u8(1).await.expect("a connection");
        assert_eq!(stream.read_u8().await.expect("an answer"), 1);

        proxy.swallow();
        stream.write_u8(2).await.expect("a connection");
        assert!(timeout(SOON, got.wait_for(|count| *count > 1)).await.is_err());
        proxy.swallow_answers();
        got.wait_for(|count| *count == 2).await.expect("it comes late");
        assert!(timeout(SOON, stream.read_u8()).await.is_err());
        proxy.pass();
        assert_eq!(stream.read_u8().await.expect("an answer"), 2);

        proxy.slow(SOON);
        let sent = Instant::now();
        stream.write_u8(9).await.expect("a connection");
        assert_eq!(stream.read_u8().await.expect("an answer"), 9);
        assert!(sent.elapsed() >= 2 * SOON, "the request and the answer are both late");
        proxy.pass();

        proxy.swallow_answers();
        stream.write_u8(3).await.expect("a connection");
        got.wait_for(|count| *count == 4).await.expect("it comes");
        proxy.cut();
        proxy.pass();
        assert!(stream.read_u8().await.is_err(), "the answer is lost");
        let mut stream = client(&proxy).await;
        stream.write_u8(4).await.expect("a connection");
        assert_eq!(stream.read_u8().await.expect("an answer"), 4);
        drop(proxy);
        assert!(stream.read_u8().await.is_err());
    }
}
