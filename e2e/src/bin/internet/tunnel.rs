//! The proxy of a network that intercepts TLS: whatever name is asked for, the tunnel leads to this program.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{World, greet};

/// Longer than any request for a tunnel.
const MAX_HEAD: usize = 8 << 10;

/// Answers at `address` from now on.
pub(crate) async fn listen(world: Arc<World>, acceptor: TlsAcceptor, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on '{address}'"))?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (world, acceptor) = (world.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Some(socket) = open(socket).await {
                    greet(world, acceptor, socket).await;
                }
            });
        }
    });
    Ok(())
}

/// Reads the request for a tunnel and grants it; anything else is cut off.
async fn open(mut socket: TcpStream) -> Option<TcpStream> {
    let mut head = Vec::new();
    // One byte at a time: what follows the head belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return None;
        }
        head.push(socket.read_u8().await.ok()?);
    }
    if !head.starts_with(b"CONNECT ") {
        return None;
    }
    socket.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
    Some(socket)
}
