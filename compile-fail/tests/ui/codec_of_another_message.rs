use anybroker::{BoxError, Codec, Event};

struct Text;

impl Codec<String> for Text {
    const CONTENT_TYPE: &'static str = "text/plain";

    fn encode(message: &String) -> Result<Vec<u8>, BoxError> {
        Ok(message.clone().into_bytes())
    }

    fn decode(payload: &[u8]) -> Result<String, BoxError> {
        Ok(str::from_utf8(payload)?.to_owned())
    }
}

#[derive(Event)]
#[event(type = "line.written", codec = Text)]
struct LineWritten(String);

fn main() {}
