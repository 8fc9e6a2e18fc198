//! A JSON object written member by member.

/// Writes the members of one object; the braces are its own.
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    any: bool,
}

impl<'a> Object<'a> {
    /// Appends an object to `out`, its members by `members`.
    pub fn write(out: &'a mut Vec<u8>, members: impl FnOnce(&mut Object<'_>)) {
        out.push(b'{');
        members(&mut Object { out: &mut *out, any: false });
        out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        if self.any {
            self.out.push(b',');
        }
        self.any = true;
        string(self.out, name);
        self.out.push(b':');
    }

    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        string(self.out, value);
    }

    /// Nothing, if there is nothing.
    pub fn some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    pub fn number(&mut self, name: &str, value: impl itoa::Integer) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    pub fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Nothing, if the list is empty.
    pub fn texts<T: AsRef<str>>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        self.list(name, values, |out, value| string(out, value.as_ref()));
    }

    /// Nothing, if the list is empty.
    pub fn numbers<T: itoa::Integer>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        self.list(name, values, |out, value| {
            out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        });
    }

    /// Nothing, if the list is empty.
    pub fn objects<T>(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
        mut members: impl FnMut(&mut Object<'_>, T),
    ) {
        self.list(name, values, |out, value| Object::write(out, |o| members(o, value)));
    }

    pub fn object(&mut self, name: &str, members: impl FnOnce(&mut Object<'_>)) {
        self.name(name);
        Object::write(self.out, members);
    }

    fn list<T>(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Vec<u8>, T),
    ) {
        let mut open = false;
        for value in values {
            if open {
                self.out.push(b',');
            } else {
                self.name(name);
                self.out.push(b'[');
                open = true;
            }
            write(self.out, value);
        }
        if open {
            self.out.push(b']');
        }
    }
}

fn string(out: &mut Vec<u8>, value: &str) {
    // A string can be JSON, and memory can be written to.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_each_kind() {
        let mut out = Vec::new();
        Object::write(&mut out, |o| {
            o.text("a\"", "b\n");
            o.number("n", -5);
            o.flag("f", true);
            o.texts("none", [""; 0]);
            o.numbers("ns", [1, 2]);
            o.objects("os", [1, 2], |o, n| o.number("x", n));
            o.object("o", |_| {});
        });
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            r#"{"a\"":"b\n","n":-5,"f":true,"ns":[1,2],"os":[{"x":1},{"x":2}],"o":{}}"#
        );
    }
}
