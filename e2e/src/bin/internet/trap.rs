//! Ports that nothing should ever reach: a connection is written down, with the first bytes it sent, and closed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::{World, record};

pub(crate) async fn listen(world: Arc<World>, ip: IpAddr, port: u16) -> Result<()> {
    let listener = TcpListener::bind((ip, port)).await.with_context(|| format!("cannot listen on port {port}"))?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let arrived = record::now();
            let mut first = [0; 256];
            let read = tokio::time::timeout(Duration::from_millis(500), socket.read(&mut first)).await;
            let said = read.ok().and_then(Result::ok).unwrap_or(0);
            world.record.event(arrived, "TCP", &format!(":{port}"), &String::from_utf8_lossy(&first[..said]));
        }
    });
    Ok(())
}
