//! The web interface and the description of the API: files of the program itself, so that nothing is
//! fetched from elsewhere.

use actix_web::HttpResponse;
use actix_web::http::header::CONTENT_TYPE;

fn file(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((CONTENT_TYPE, kind)).body(text)
}

pub(super) async fn index() -> HttpResponse {
    file("text/html; charset=utf-8", include_str!("pages/index.html"))
}

pub(super) async fn script() -> HttpResponse {
    file("text/javascript; charset=utf-8", include_str!("pages/app.js"))
}

pub(super) async fn style() -> HttpResponse {
    file("text/css; charset=utf-8", include_str!("pages/style.css"))
}

pub(super) async fn openapi() -> HttpResponse {
    file("application/json", OPENAPI)
}

pub(super) const OPENAPI: &str = include_str!("pages/openapi.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::ROUTES;
    use serde_json::Value;

    #[test]
    fn the_description_has_every_path_and_no_other() {
        let described: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut paths = Vec::new();
        for (path, methods) in described["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let open = operation["security"] == serde_json::json!([]);
                assert_eq!(operation["responses"].get("401").is_none(), open, "{path}");
                paths.push((method.to_uppercase(), path.clone(), open));
            }
        }
        let mut routes: Vec<_> =
            ROUTES.iter().map(|(m, p, open)| (m.to_string(), p.to_string(), *open)).collect();
        paths.sort();
        routes.sort();
        assert_eq!(paths, routes);
    }

    #[test]
    fn pages_fetch_nothing_from_elsewhere() {
        for text in [
            include_str!("pages/index.html"),
            include_str!("pages/app.js"),
            include_str!("pages/style.css"),
        ] {
            assert!(
                !text.contains("//cdn") && !text.contains("http://") && !text.contains("https://")
            );
            assert!(
                !text.contains("innerHTML")
                    && !text.contains("style=\"")
                    && !text.contains("onclick=")
            );
        }
    }
}
