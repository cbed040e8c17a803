-- What the dashboard asks of a project with 10,000 keys and 10,000,000 requests in 30
-- days. In a database of its own, of a server that preloads regpilot:
--	psql -f bench/dashboard.sql
-- A third of the requests are of a few keys, the others spread over all.
\set ON_ERROR_STOP 1
\set keys 10000
\set rows 10000000
CREATE EXTENSION IF NOT EXISTS regpilot;
SELECT regpilot.create_project('dashboard', 'enterprise') AS project \gset
INSERT INTO regpilot.api_key (project_id, name, environment, hint, digest, permissions)
SELECT :'project', 'key ' || i, (ARRAY['dev', 'staging', 'prod', 'ci', NULL])[1 + i % 5], 'sk_...' || lpad(i::text, 4, '0'),
	sha256(i::text::bytea), '{gateway:write}'
FROM generate_series(1, :keys) i;
SELECT count(regpilot.maintain_request_log(now() - make_interval(days => i))) FROM generate_series(30, 0, -5) i;

CREATE TEMP TABLE numbered AS
SELECT id, row_number() OVER () AS number, coalesce(environment, 'other') AS environment FROM regpilot.api_key WHERE project_id = :'project';
CREATE INDEX ON numbered (number);
ANALYZE numbered;
\timing on
INSERT INTO regpilot.request_log (at, project_id, key_id, environment, status, latency_ms, first_byte_ms, model, prompt_tokens, completion_tokens)
SELECT now() - interval '30 days' * (:rows - i) / :rows, :'project', id,
	CASE WHEN random() < 0.1 THEN 'other' ELSE environment END,
	CASE WHEN i % 1000003 = 500 THEN 418 WHEN random() < 0.02 THEN 500 WHEN random() < 0.03 THEN 400 ELSE 200 END,
	exp(6 + 1.2 * (random() + random() + random() - 1.5))::int, exp(5 + random())::int,
	CASE WHEN random() < 0.05 THEN NULL ELSE 'model-' || (8 * random() * random())::int END,
	(random() * 2000)::int, (random() * 800)::int
FROM (SELECT i, 1 + (:keys * CASE WHEN random() < 0.33 THEN random() ^ 8 ELSE random() END)::int % :keys AS number FROM generate_series(1, :rows) i) r
	JOIN numbered USING (number);
SELECT regpilot.roll_up_request_log(now() - interval '31 days');
VACUUM (ANALYZE) regpilot.request_log;
VACUUM (ANALYZE) regpilot.request_rollup;
VACUUM (ANALYZE) regpilot.api_key;
SELECT kind, count(*) FROM regpilot.request_rollup GROUP BY kind ORDER BY kind;

SELECT id AS key_id FROM regpilot.api_key WHERE project_id = :'project' AND name = 'key 5000' \gset
-- exact
SELECT (regpilot.analytics(:'project', '{"period": "month"}') #>> '{totals,requests}')::int = count(*) AS exact
FROM regpilot.request_log WHERE at >= date_trunc('day', now(), 'UTC') - interval '29 days' AND at < date_trunc('day', now(), 'UTC') + interval '1 day';

\o /dev/null
\set ECHO queries
SELECT regpilot.log_page(:'project');
SELECT regpilot.log_page(:'project', '{"limit": "1000"}');
SELECT regpilot.log_page(:'project', jsonb_build_object('cursor', (extract(epoch FROM now() - interval '25 days') * 1000000)::bigint || '.1'));
SELECT regpilot.log_page(:'project', jsonb_build_object('to', to_char(now() - interval '25 days', 'YYYY-MM-DD')));
SELECT regpilot.log_page(:'project', '{"status": "418"}');
SELECT regpilot.log_page(:'project', '{"status": "5xx", "limit": "1000"}');
SELECT regpilot.log_page(:'project', jsonb_build_object('key_id', :'key_id'));
SELECT regpilot.analytics(:'project', '{"period": "day"}');
SELECT regpilot.analytics(:'project', '{"period": "week"}');
SELECT regpilot.analytics(:'project', '{"period": "month"}');
SELECT regpilot.analytics(:'project', '{"period": "month", "model": "model-1"}');
SELECT regpilot.analytics(:'project', '{"period": "month", "environment": "prod"}');
SELECT regpilot.analytics(:'project', jsonb_build_object('period', 'day', 'key_id', :'key_id'));
SELECT regpilot.analytics(:'project', jsonb_build_object('period', 'month', 'key_id', :'key_id'));
SELECT regpilot.key_page(:'project');
SELECT regpilot.key_page(:'project', '{"search": "99", "status": "active"}');
SELECT regpilot.key_page(:'project', '{"status": "rotation_due"}');
SELECT regpilot.audit_page(:'project');
SELECT regpilot.audit_page(:'project', jsonb_build_object('key_id', :'key_id'));
