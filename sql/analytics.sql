--
-- Pages of the log, of keys and of the audit, and sums of the log. The worker may roll
-- up the log at any time, which changes nothing of what these say.
--
SET timezone = 'Asia/Tokyo';		-- nor does this
SET datestyle = 'German';
DELETE FROM regpilot.project;
SELECT regpilot.create_project('analytics test', 'enterprise') AS project, regpilot.create_project('other', 'enterprise') AS other \gset
SELECT key_id AS k1 FROM regpilot.create_key(:'project', 'Billing', 'prod') \gset
SELECT key_id AS k2 FROM regpilot.create_key(:'project', 'nightly', 'ci') \gset
SELECT key_id AS k3 FROM regpilot.create_key(:'project', 'gone', 'ci') \gset
SELECT key_id AS k4 FROM regpilot.create_key(:'other', 'k', 'ci') \gset

--
-- Nothing yet
--
SELECT regpilot.log_page(:'project'), regpilot.audit_page(:'other', '{"key_id": "00000000-0000-0000-0000-000000000000"}');
SELECT jsonb_pretty(regpilot.analytics(:'project') - 'series' - 'from' - 'to');
SELECT period, jsonb_array_length(a -> 'series') BETWEEN 145 AND 168 AS hours, jsonb_array_length(a -> 'series') AS count, a -> 'interval' AS interval
FROM unnest('{day,month}'::text[]) period, regpilot.analytics(:'project', jsonb_build_object('period', period)) a;
SELECT jsonb_array_length(a -> 'series') BETWEEN 145 AND 168 AS hours, a -> 'interval' AS interval FROM regpilot.analytics(:'project', '{"period": "week"}') a;
SELECT jsonb_array_length(a -> 'series') AS count, a -> 'interval' AS interval, a -> 'series' -> 0 ->> 'at' = a ->> 'from' AS from
FROM regpilot.analytics(:'project', format('{"period": "week", "key_id": "%s"}', :'k1')::jsonb) a;

--
-- Requests of 35 days, as they would have come
--
SELECT setseed(0.5);
INSERT INTO regpilot.request_log (at, project_id, key_id, environment, status, latency_ms, first_byte_ms, model, prompt_tokens, completion_tokens)
SELECT now() - interval '35 days' * (i / 6000.0) ^ 2, CASE WHEN i % 10 = 0 THEN :'other' ELSE :'project' END::uuid,
	CASE WHEN i % 10 = 0 THEN :'k4' ELSE (ARRAY[:'k1', :'k1', :'k2', :'k3'])[1 + i % 4] END::uuid,
	(ARRAY['prod', 'prod', 'ci', 'other'])[1 + (random() * 3)::int], (ARRAY[200, 200, 200, 404, 500])[1 + (random() * 4)::int],
	CASE WHEN i % 7 > 0 THEN exp(random() * 10)::int END, CASE WHEN i % 7 > 1 THEN (random() * 15)::int END,
	(ARRAY['a', 'b', '', NULL])[1 + (random() * 3)::int], i, i * 2
FROM generate_series(1, 6000) i;
DELETE FROM regpilot.api_key WHERE id = :'k3';

-- What of analytics() is not as the log has it: the same, worked out of its rows. A
-- quantile may be a tenth off.
CREATE FUNCTION differences(project uuid, filter jsonb) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
	a jsonb := regpilot.analytics(project, filter);
	step interval := a ->> 'interval';
	found text[];
BEGIN
	WITH l AS (
		SELECT *, date_bin(step, at, '2000-01-01 00:00+00') AS slot FROM regpilot.request_log
		WHERE project_id = project AND at >= (a ->> 'from')::timestamptz AND at < (a ->> 'to')::timestamptz
			AND key_id::text = coalesce(filter ->> 'key_id', key_id::text) AND environment = coalesce(filter ->> 'environment', environment)
			AND (filter ->> 'model' IS NULL OR model = filter ->> 'model')
	), sums AS (
		SELECT slot, environment, model, key_id, grouping(slot, environment, model, key_id) AS set,
			jsonb_build_array(count(*), count(*) FILTER (WHERE status >= 400), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0)) AS counts,
			percentile_disc('{0.5,0.95,0.99}'::float8[]) WITHIN GROUP (ORDER BY latency_ms) AS latency,
			percentile_disc('{0.5,0.95,0.99}'::float8[]) WITHIN GROUP (ORDER BY first_byte_ms) AS first_byte
		FROM l GROUP BY GROUPING SETS ((), (slot), (environment), (model), (key_id))
	), said AS (
		SELECT 'totals' AS what, 15 AS set, NULL AS name, a -> 'totals' AS one
		UNION ALL SELECT 'series', 7, extract(epoch FROM (s ->> 'at')::timestamptz)::text, s FROM jsonb_array_elements(a -> 'series') s WHERE s ->> 'requests' <> '0'
		UNION ALL SELECT 'environments', 11, s ->> 'environment', s FROM jsonb_array_elements(a -> 'environments') s
		UNION ALL SELECT 'models', 13, s ->> 'model', s FROM jsonb_array_elements(a -> 'models') s
		UNION ALL SELECT 'keys', 14, s ->> 'key_id', s FROM jsonb_array_elements(a -> 'keys') s
	)
	SELECT array_agg(DISTINCT concat_ws(' ', what, set, name, one, sums))
	INTO found
	FROM said FULL JOIN sums USING (set)
	WHERE coalesce(name, '-') = coalesce(coalesce(extract(epoch FROM slot)::text, environment, model, key_id::text), '-')
		AND (counts IS DISTINCT FROM jsonb_build_array(one -> 'requests', one -> 'failed_requests', one -> 'prompt_tokens', one -> 'completion_tokens')
			OR one ? 'latency_ms' AND EXISTS (SELECT FROM generate_subscripts('{p50,p95,p99}'::text[], 1) i
				WHERE (latency IS NULL) <> (one #>> '{latency_ms,p50}' IS NULL)
					OR abs((one -> 'latency_ms' ->> ('{p50,p95,p99}'::text[])[i])::int - latency[i]) > 0.1 * latency[i])
			OR one ? 'first_byte_ms' AND EXISTS (SELECT FROM generate_subscripts('{p50,p95,p99}'::text[], 1) i
				WHERE abs((one -> 'first_byte_ms' ->> ('{p50,p95,p99}'::text[])[i])::int - first_byte[i]) > 0.1 * first_byte[i]));
	-- and there are as many of each
	IF (SELECT count(*) FROM (SELECT DISTINCT date_bin(step, at, '2000-01-01 00:00+00') FROM regpilot.request_log
			WHERE project_id = project AND at >= (a ->> 'from')::timestamptz AND at < (a ->> 'to')::timestamptz
				AND key_id::text = coalesce(filter ->> 'key_id', key_id::text) AND environment = coalesce(filter ->> 'environment', environment)
				AND (filter ->> 'model' IS NULL OR model = filter ->> 'model')) s)
		<> (SELECT count(*) FROM jsonb_array_elements(a -> 'series') s WHERE s ->> 'requests' <> '0')
	THEN
		found := found || 'number of slots'::text;
	END IF;
	RETURN concat_ws(' ', a #>> '{totals,requests}' > '0', jsonb_array_length(a -> 'keys'), jsonb_array_length(a -> 'models'),
		jsonb_array_length(a -> 'environments'), coalesce(array_to_string(found, '; '), 'same'));
END
$$;
CREATE VIEW filters AS
SELECT jsonb_strip_nulls(jsonb_build_object('period', period, 'key_id', key_id, 'environment', environment, 'model', model)) AS filter
FROM unnest('{day,week,month}'::text[]) period, (SELECT NULL AS key_id UNION ALL SELECT id::text FROM regpilot.api_key WHERE name = 'Billing') k,
	unnest('{NULL,prod}'::text[]) environment, unnest('{NULL,a}'::text[]) model;
CREATE FUNCTION all_differences(project uuid) RETURNS SETOF text LANGUAGE sql STABLE AS $$
	SELECT concat_ws(' ', filter ->> 'period', CASE WHEN filter ? 'key_id' THEN 'key' END, filter ->> 'environment', filter ->> 'model', differences(project, filter)) FROM filters ORDER BY 1
$$;

-- of all that is rolled up, of some, and of nothing but the log
SELECT regpilot.roll_up_request_log(now() - interval '40 days');
SELECT all_differences(:'project');
SELECT differences(:'other', '{"period": "month"}');
SELECT count(DISTINCT kind) AS kinds, count(*) > 1000 AS sums FROM regpilot.request_rollup WHERE project_id = :'project';
BEGIN;
SELECT regpilot.forget_rollup(now() - interval '3 days') IS NULL;
SELECT all_differences(:'project') EXCEPT SELECT all_differences(:'project') LIMIT 1;
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
SELECT regpilot.forget_rollup(now() - interval '40 days') IS NULL;
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
SELECT count(*) FROM regpilot.request_rollup;
-- in slices, of which each is rolled up once
SELECT count(regpilot.roll_up(now(), interval '7 hours')) FROM generate_series(1, 150);
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
SELECT rolled_up_to >= now() AS done, regpilot.roll_up(now(), interval '7 hours') = rolled_up_to AS nothing_more FROM regpilot.request_rollup_progress;
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
ROLLBACK;

-- what comes later, also within the hour
SELECT regpilot.record_many(array_fill(:'k1'::uuid, '{3}'), '{prod,ci,dev}', '{200,500,200}', '{1,2,NULL}', '{a,new,NULL}', '{1,2,3}', '{4,5,6}');
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
SELECT regpilot.roll_up_request_log();
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';

-- what is not committed is not there, what is rolled back never was
BEGIN;
SELECT regpilot.record_many(ARRAY[:'k1']::uuid[], '{prod}', '{200}', '{1}', '{a}', '{1}', '{4}');
SELECT regpilot.roll_up_request_log();
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
ROLLBACK;
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';

-- upkeep deletes what is looked at no more, and what is as old as what it deletes of the log
SELECT kind, count(*) FROM regpilot.request_rollup
WHERE since < date_trunc('day', now(), 'UTC') - CASE kind WHEN 'hour' THEN interval '7 days' WHEN 'key_hour' THEN interval '1 day' ELSE interval '40 days' END GROUP BY kind;
SELECT regpilot.maintain_request_log();
SELECT min(since) = date_trunc('day', now(), 'UTC') - interval '30 days' AS month FROM regpilot.request_rollup WHERE kind = 'day';
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';
-- as of later, the latest days it deletes not
SELECT regpilot.maintain_request_log(now() + interval '3 days');
SELECT min(since) = date_trunc('day', now(), 'UTC') - interval '27 days' AS month FROM regpilot.request_rollup WHERE kind = 'day';
SELECT d FROM all_differences(:'project') d WHERE d !~ 'same$';

SELECT * FROM error_of($$SELECT regpilot.roll_up_request_log('infinity')$$);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT regpilot.roll_up_request_log();
ROLLBACK;
BEGIN READ ONLY;
SELECT regpilot.roll_up_request_log();
ROLLBACK;
BEGIN READ ONLY;
SELECT jsonb_typeof(regpilot.analytics(:'project')), jsonb_typeof(regpilot.log_page(:'project'));
COMMIT;

-- histograms
SELECT v, q, abs(q - v::bigint) <= 0.1 * v AS near FROM unnest('{-2147483648,0,1,9,10,11,100,1000,1000000,2147483647}'::int[]) v,
	LATERAL (SELECT regpilot.histogram_quantile(regpilot.histogram(x), 0.5) AS q FROM unnest(ARRAY[v]) x) h;
SELECT regpilot.histogram(x), regpilot.histogram_quantile(regpilot.histogram(x), 0.5) FROM unnest('{NULL}'::int[]) x;
SELECT regpilot.histogram_add(NULL, NULL), regpilot.histogram_add('{257,514}', NULL), regpilot.histogram_add('{257,514}', '{258,259}');
SELECT f, regpilot.histogram_quantile(h, f) FROM (SELECT regpilot.histogram(x) AS h FROM generate_series(1, 10) x) h, unnest('{-1,0,0.1,0.11,0.5,0.95,1,2}'::float8[]) f;

--
-- The log, page by page
--
CREATE FUNCTION all_pages(project uuid, filter jsonb, OUT pages int, OUT rows int, OUT in_order bool, OUT same bool) LANGUAGE plpgsql STABLE AS $$
DECLARE
	page jsonb;
	ids bigint[] := '{}';
BEGIN
	pages := 0;
	LOOP
		page := regpilot.log_page(project, filter);
		pages := pages + 1;
		ids := ids || ARRAY(SELECT (r -> 'id')::bigint FROM jsonb_array_elements(page -> 'data') r);
		EXIT WHEN page ->> 'next_cursor' IS NULL;
		filter := filter || jsonb_build_object('cursor', page -> 'next_cursor');
	END LOOP;
	rows := cardinality(ids);
	in_order := ids = ARRAY(SELECT id FROM regpilot.request_log WHERE id = ANY (ids) ORDER BY at DESC, id DESC);
	same := rows = (SELECT count(*) FROM regpilot.request_log WHERE project_id = project AND status >= CASE WHEN filter ? 'status' THEN 500 ELSE 0 END);
END
$$;
SELECT size, pages = ceil(rows::numeric / size) AS pages, rows > 500 AS rows, in_order, same
FROM unnest('{7,100,1000}'::int[]) size, all_pages(:'other', jsonb_build_object('limit', size));
SELECT pages = ceil(rows / 7.0) AS pages, in_order, same FROM all_pages(:'project', '{"limit": 7, "status": "5xx"}');
-- as many as are left
SELECT more, pages, in_order, same FROM (SELECT count(*) AS count FROM regpilot.request_log WHERE project_id = :'other') c,
	unnest(ARRAY[-1, 0, 1]) more, LATERAL (SELECT count + more AS size) s, all_pages(:'other', jsonb_build_object('limit', size));

-- a call reads so many rows at most
INSERT INTO regpilot.request_log (at, project_id, key_id, environment, status, prompt_tokens, completion_tokens)
SELECT '2001-01-01 00:00:00.25+00'::timestamptz + make_interval(secs => (i / 1000)), :'other', :'k4', 'dev', CASE WHEN i IN (7, 99000) THEN 503 ELSE 201 END, 0, 0
FROM generate_series(1, 120000) i;
SELECT jsonb_array_length(a -> 'data'), a ->> 'next_cursor' ~ '^978307270250000\.\d+$' AS next_cursor, b #> '{data,0,status}' AS status, b -> 'next_cursor' IS NOT NULL AS more,
	jsonb_array_length(c -> 'data') AS rest, c -> 'next_cursor' AS last
FROM regpilot.log_page(:'other', '{"status": "503", "limit": "1", "to": "2001-01-02"}') a,
	regpilot.log_page(:'other', '{"status": "503", "limit": "2", "to": "2001-01-02"}'::jsonb) b,
	regpilot.log_page(:'other', '{"status": "503", "limit": "2", "to": "2001-01-02", "cursor": "978307202250000.1"}') c;
SELECT pages, rows, in_order FROM all_pages(:'other', '{"limit": "1000", "status": "503"}');
DELETE FROM regpilot.request_log WHERE project_id = :'other' AND status IN (201, 503);

-- filters
INSERT INTO regpilot.request_log (at, project_id, key_id, environment, status, latency_ms, first_byte_ms, model, prompt_tokens, completion_tokens)
VALUES ('2001-01-01 00:00+00', :'other', :'k4', 'dev', 200, 12, 3, 'gpt-4o', 4, 5),
	('2001-01-01 00:00:00.000001+00', :'other', :'k4', 'ci', 499, NULL, NULL, NULL, 0, 0),
	('2001-01-01 12:00+00', :'other', :'k4', 'ci', 599, NULL, NULL, '<script>', 0, 0);
SELECT jsonb_pretty((row - 'id' - 'key_id' - 'key_hint') || jsonb_build_object('key_id', row ->> 'key_id' = :'k4')) AS row
FROM regpilot.log_page(:'other', '{"to": "2001-01-01T00:00:00.000001Z"}') page, jsonb_array_elements(page -> 'data') row;
SELECT filter, (SELECT string_agg(concat_ws(' ', row ->> 'at', row ->> 'status'), ', ') FROM jsonb_array_elements(page -> 'data') row) AS rows
FROM unnest(ARRAY['{"from": "2001-01-01T00:00:00.000001Z", "to": "2001-01-01T12:00:00Z"}', '{"to": "2001-01-01"}', '{"from": "2001-01-01 09:00+09:00", "to": "2001-01-01 12:00:01"}',
	'{"status": "499"}', '{"status": "failed", "to": "2001-01-02"}', '{"status": "4xx", "to": "2001-01-02", "environment": "ci"}', '{"model": "gpt-4o"}', '{"model": "<script>"}',
	'{"environment": "dev", "model": "", "status": null, "to": "2001-01-02"}', '{"key_id": "00000000-0000-0000-0000-000000000000"}']::jsonb[]) filter,
	regpilot.log_page(:'other', filter) page;

-- refused
SELECT filter, e.* FROM unnest(ARRAY['{"from": "yesterday"}', '{"to": "2026-02-30"}', '{"to": "2001-01-01T25:00:00Z"}', '{"key_id": "x"}', '{"environment": "laptop"}', '{"status": "abc"}', '{"status": "600"}',
	'{"status": "6xx"}', '{"limit": "0"}', '{"limit": "1001"}', '{"limit": "-1"}', '{"cursor": "''; DROP"}', '{"cursor": "1"}', '{"status": ["200"]}', '{"form": "x"}', '[]', '1']::jsonb[]) filter,
	error_of(format('SELECT regpilot.log_page(%L, %L)', :'other', filter)) e;
SELECT filter, code, message FROM unnest(ARRAY['{"period": "year"}', '{"key_id": "1"}', '{"environment": "x"}', '{"limit": "1"}']::jsonb[]) filter,
	error_of(format('SELECT regpilot.analytics(%L, %L)', :'other', filter)) e;
SELECT filter, code, message FROM unnest(ARRAY['{"limit": "x"}', '{"cursor": "x"}', '{"x": "x"}']::jsonb[]) filter,
	error_of(format('SELECT regpilot.audit_page(%L, %L)', :'other', filter)) e;
SELECT filter, code, message FROM unnest(ARRAY['{"status": "quiet"}', '{"cursor": "x"}', '{"limit": "1e3"}']::jsonb[]) filter,
	error_of(format('SELECT regpilot.key_page(%L, %L)', :'other', filter)) e;
SELECT code, message FROM error_of(format('SELECT regpilot.log_page(%L, NULL)', :'other'));

--
-- Keys
--
INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions, created_at, active, revoked_at, expires_at, flagged_at)
SELECT :'project', 'many ' || i, 'sk_...' || i, sha256(('analytics ' || i)::bytea), '{gateway:write}', CASE WHEN i = 50 THEN '2020-01-01 00:00+00' ELSE now() - interval '30 days' - interval '1 minute' * i END,
	i <> 10, CASE WHEN i = 20 THEN now() END, CASE WHEN i = 30 THEN now() - interval '1 day' END, CASE WHEN i = 40 THEN now() END
FROM generate_series(1, 250) i;
SELECT jsonb_array_length(a -> 'data') AS page, a -> 'total' AS total, jsonb_array_length(b -> 'data') AS page, b -> 'total' AS total, jsonb_array_length(c -> 'data') AS page, c -> 'next_cursor' AS next_cursor,
	(SELECT count(DISTINCT row -> 'key_id') FROM jsonb_array_elements(a -> 'data' || (b -> 'data') || (c -> 'data')) row) AS keys
FROM regpilot.key_page(:'project') a, regpilot.key_page(:'project', jsonb_build_object('cursor', a ->> 'next_cursor')) b,
	regpilot.key_page(:'project', jsonb_build_object('cursor', b ->> 'next_cursor')) c;
SELECT o.key_id::text = regpilot.key_page(:'project', '{"search": "BILL"}') #>> '{data,0,key_id}' AS same,
	regpilot.key_page(:'project', '{"search": "BILL"}') #>> '{data,0,created_at}' ~ '^\d{4}-\d\d-\d\dT.*\+00:00$' AS iso
FROM regpilot.key_overview o WHERE key_id = :'k1';
SELECT filter, page -> 'total' AS total, page #> '{data,0,name}' AS name, page #> '{data,0,status}' AS status
FROM unnest(ARRAY['{"search": "99"}', '{"search": "...249"}', '{"search": "%"}', '{"search": "\\"}', '{"search": ""}', '{"status": "active"}', '{"status": "inactive"}', '{"status": "expired"}', '{"status": "revoked"}',
	'{"status": "flagged"}', '{"status": "rotation_due", "search": "50"}', '{"status": "active", "search": "many 10"}']::jsonb[]) filter, regpilot.key_page(:'project', filter) page;

--
-- The audit
--
SELECT row ->> 'action' AS action, row ->> 'table_name' AS table_name, row ->> 'object' = :'k1' AS object, row ->> 'key_id' = :'k1' AS key, row #>> '{new,name}' AS name, row #>> '{new,digest}' AS digest, row -> 'old' AS old
FROM regpilot.audit_page(:'project', format('{"key_id": "%s"}', :'k1')::jsonb) page, jsonb_array_elements(page -> 'data') row;
SELECT jsonb_array_length(a -> 'data'), jsonb_array_length(b -> 'data'), (a #> '{data,199,id}')::bigint > (b #> '{data,0,id}')::bigint AS older, b -> 'next_cursor' AS next_cursor,
	b #>> '{data,-1,table_name}' AS first, b #>> '{data,-1,at}' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$' AS at
FROM regpilot.audit_page(:'project', '{"limit": "200"}') a, regpilot.audit_page(:'project', jsonb_build_object('limit', '200', 'cursor', a ->> 'next_cursor')) b;

--
-- Who sees what
--
CREATE ROLE regress_regpilot_eve IN ROLE regpilot_reader;
INSERT INTO regpilot.project_member VALUES (:'other', 'regress_regpilot_eve');
PREPARE see AS
SELECT jsonb_array_length(regpilot.log_page($1) -> 'data') AS log, regpilot.analytics($1, '{"period": "month"}') #> '{totals,requests}' > '0' AS requests,
	jsonb_array_length(regpilot.analytics($1, '{"period": "month"}') -> 'keys') AS used_keys, regpilot.key_page($1) -> 'total' AS keys, jsonb_array_length(regpilot.audit_page($1) -> 'data') AS audit,
	(SELECT count(DISTINCT project_id) FROM regpilot.request_rollup WHERE project_id IN ($1, :'other')) AS projects;
SET ROLE regress_regpilot_eve;
EXECUTE see(:'project');
EXECUTE see(:'other');
SELECT code FROM error_of(format('SELECT regpilot.key_log(%L, ''{}'')', :'other'));
SELECT code FROM error_of(format('SELECT regpilot.key_analytics(%L, ''{}'')', :'other'));
SELECT code FROM error_of('SELECT regpilot.roll_up_request_log()');
SELECT code FROM error_of('SELECT regpilot.forget_rollup(now())');
SELECT code FROM error_of('DELETE FROM regpilot.request_rollup');
SELECT code FROM error_of('SELECT * FROM regpilot.request_rollup_hour');
SET ROLE regpilot_admin;
EXECUTE see(:'project');
SELECT code FROM error_of(format('SELECT regpilot.key_log(%L, ''{}'')', :'other'));
SELECT code FROM error_of('SELECT regpilot.roll_up_request_log()');
-- the responder, for a key
SET ROLE regpilot_responder;
SELECT jsonb_array_length(regpilot.key_log(:'project', '{"limit": "3"}') -> 'data') AS log, regpilot.key_log(:'project', '{"limit": "1"}') #>> '{data,0,key_name}' AS name,
	regpilot.key_analytics(:'project', '{"period": "month"}') #> '{totals,requests}' > '0' AS requests;
SELECT code, message FROM error_of(format('SELECT regpilot.key_log(%L, ''{"status": "x"}'')', :'project'));
SELECT code FROM error_of(format('SELECT regpilot.log_page(%L)', :'project'));
SELECT code FROM error_of(format('SELECT regpilot.key_page(%L)', :'project'));
SELECT code FROM error_of('SELECT * FROM regpilot.request_rollup');
RESET ROLE;
DEALLOCATE see;

DELETE FROM regpilot.project;
DELETE FROM regpilot.request_log;
SELECT regpilot.roll_up_request_log(now() - interval '40 days');
SELECT count(*) FROM regpilot.request_rollup;
DROP ROLE regress_regpilot_eve;
DROP FUNCTION all_pages, all_differences, differences;
DROP VIEW filters;
RESET timezone;
RESET datestyle;
