--
-- The text of keys, and their life.
--

-- The parts of an error.
CREATE FUNCTION error_of(statement text, OUT code text, OUT message text, OUT detail text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$;

SELECT regpilot.create_project('key test', 'enterprise') AS project \gset

-- form, hint and checksum for each environment
SELECT e.environment,
	k.key ~ ('^sk_' || coalesce(e.environment || '_', '') || '[0-9a-z]{32}$') AS form,
	k.hint = 'sk_' || coalesce(e.environment || '_', '') || '...' || right(k.key, 4) AS hint,
	regpilot.key_checksum_ok(k.key) AS checksum,
	regpilot.key_checksum_ok(translate(k.key, '0123456789', '1234567890')) AS other_digits,
	regpilot.key_checksum_ok(upper(k.key)) AS upper_case,
	regpilot.key_checksum_ok(k.key || '0') AS longer
FROM unnest('{NULL,dev,staging,prod,ci}'::text[]) AS e(environment),
	LATERAL regpilot.create_key(:'project', 'k', e.environment) AS k;

-- a checksum worked out elsewhere: CRC-32 of zlib over "sk_" and 25 zeros
SELECT regpilot.key_checksum_ok('sk_' || repeat('0', 25) || '0504mb4');
SELECT regpilot.key_checksum_ok(''), regpilot.key_checksum_ok('sk_'), regpilot.key_checksum_ok(repeat('x', 10000));

-- only the digest is stored, and it is the SHA-256 of the whole key
SELECT key_id, key FROM regpilot.create_key(:'project', 'stored') \gset
SELECT digest = sha256(:'key'::bytea) AS digest, hint <> :'key' AS hint, created_by = session_user AS created_by,
	active, revoked_at IS NULL AS not_revoked, expires_at, environment, permissions, requests_per_minute
FROM regpilot.api_key WHERE id = :'key_id';
SELECT count(*) FROM regpilot.api_key k WHERE to_jsonb(k)::text LIKE '%' || :'key' || '%';

-- 1,000 keys: no two alike, all characters in use
SELECT count(DISTINCT key), count(DISTINCT c)
FROM (SELECT key FROM generate_series(1, 1000) i, LATERAL regpilot.create_key(:'project', 'many' || i)) k,
	LATERAL regexp_split_to_table(substr(key, 4), '') c;

-- what is not accepted
SELECT * FROM error_of('SELECT regpilot.create_project(NULL)');
SELECT * FROM error_of('SELECT regpilot.create_project('''')');
SELECT * FROM error_of('SELECT regpilot.create_project(repeat(''x'', 201))');
SELECT * FROM error_of('SELECT regpilot.create_project(E''two\nlines'')');
SELECT * FROM error_of('SELECT regpilot.create_project(E''tab\t'')');
SELECT * FROM error_of('SELECT regpilot.create_project(E''\x01'')');
SELECT * FROM error_of('SELECT regpilot.create_project(E''delete\x7f'')');
SELECT * FROM error_of('SELECT regpilot.create_project(repeat(E''\u4e2d'', 201))');
SELECT code FROM error_of('SELECT regpilot.create_project(convert_from(''\x610062'', ''UTF8''))');
SELECT * FROM error_of('SELECT regpilot.create_project(''key test'')');
SELECT * FROM error_of('SELECT regpilot.create_project(''p'', ''no such plan'')');
SELECT * FROM error_of('SELECT regpilot.create_project(''p'', NULL)');
SELECT * FROM error_of('SELECT regpilot.create_key(NULL, ''k'')');
SELECT * FROM error_of('SELECT regpilot.create_key(''00000000-0000-0000-0000-000000000000'', ''k'')');
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, NULL)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, '''')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, E''two\nlines'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, repeat(E''\u4e2d'', 201))', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', '''')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', ''PROD'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', ''test'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', ''other'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => NULL)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{NULL}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{gateway:read,keys:admin}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{{gateway:read}}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{logs:read,logs:read,logs:read,logs:read,logs:read}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{logs:read,gateway:read,logs:read}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{admin}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{Gateway:Read}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', permissions => ''{""}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', expires_at => ''2000-01-01 00:00+00'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', expires_at => ''-infinity'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', requests_per_minute => 0)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', requests_per_minute => -5)', :'project'));
SELECT * FROM error_of('SELECT regpilot.revoke_key(NULL)');
SELECT * FROM error_of('SELECT regpilot.revoke_key(''00000000-0000-0000-0000-000000000000'')');
SELECT * FROM error_of('SELECT regpilot.revoke_key(''00000000-0000-0000-0000-000000000000'', ''why'')');
SELECT * FROM error_of('SELECT regpilot.disable_key(NULL)');
SELECT * FROM error_of('SELECT regpilot.enable_key(NULL)');
SELECT * FROM error_of('SELECT regpilot.disable_key(''00000000-0000-0000-0000-000000000000'')');
SELECT * FROM error_of('SELECT regpilot.enable_key(''00000000-0000-0000-0000-000000000000'')');

-- and nothing was changed by it
SELECT count(*) FROM regpilot.project;
SELECT count(*) FROM regpilot.api_key WHERE name = 'k';

SELECT count(*) FROM regpilot.api_key WHERE NOT active OR revoked_at IS NOT NULL OR reviewed_at IS NOT NULL;

-- function and table agree on what a name may hold
SELECT count(*) FROM regpilot.create_key(:'project', U&'na\00efve \0085 \4e2d\6587');
SELECT count(*) FROM regpilot.create_key(:'project', repeat(U&'\4e2d', 200));
SELECT code FROM error_of('UPDATE regpilot.api_key SET name = repeat(E''\u4e2d'', 201)');
SELECT code FROM error_of('UPDATE regpilot.api_key SET name = E''delete\x7f''');

-- and on a list of permissions
SELECT permissions, e.code
FROM unnest(ARRAY['{keys:admin}', '{}', '{NULL}', '{logs:read,NULL}', '{{logs:read}}', '{logs:read,logs:read}',
		'{logs:read,keys:admin}', '{analytics:read,logs:read,gateway:write,gateway:read}']) AS permissions,
	LATERAL error_of(format('UPDATE regpilot.api_key SET permissions = %L', permissions)) AS e;

-- infinity: it never expires
SELECT key_id AS endless_id FROM regpilot.create_key(:'project', 'endless', expires_at => 'infinity') \gset
SELECT status, expires_at FROM regpilot.key_overview WHERE key_id = :'endless_id';

-- disable, enable; both as often as one likes
SELECT status FROM regpilot.key_overview WHERE key_id = :'key_id';
SELECT regpilot.disable_key(:'key_id');
SELECT regpilot.disable_key(:'key_id');
SELECT status FROM regpilot.key_overview WHERE key_id = :'key_id';
SELECT regpilot.enable_key(:'key_id');
SELECT regpilot.enable_key(:'key_id');
SELECT status FROM regpilot.key_overview WHERE key_id = :'key_id';

-- a revocation is never refused for what is said about it
SELECT key_id AS explained_id FROM regpilot.create_key(:'project', 'explained') \gset
SELECT regpilot.revoke_key(:'explained_id', U&'two\000alines \4e2d\6587 ' || repeat('x', 10000));
SELECT length(revoke_reason) FROM regpilot.api_key WHERE id = :'explained_id';

-- but no key is kept in what others read, nor told in an error
SELECT key_id AS told_id, key AS told, hint AS told_hint FROM regpilot.create_key(:'project', 'told', 'staging') \gset
SELECT regpilot.revoke_key(:'told_id', format('%s found, %s- and %s', :'told', left(:'told', -1), :'told'));
SELECT revoke_reason = format('%s found, %s- and %s', :'told_hint', left(:'told', -1), :'told_hint') AS hidden
FROM regpilot.api_key WHERE id = :'told_id';
SELECT code, message, detail, hint FROM error_of(format('SELECT regpilot.create_key(%L, %L)', :'project', 'my ' || :'told'));
SELECT code, message, detail, hint FROM error_of(format('SELECT regpilot.create_project(%L)', :'told'));
SELECT code, message FROM error_of(format('SELECT regpilot.create_project(''p'', %L)', :'told'));
SELECT code, message FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', %L)', :'project', :'told'));
SELECT code, message FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', NULL, ARRAY[%L])', :'project', :'told'));
SELECT code, message FROM error_of(format('SELECT regpilot.create_key(%L, ''k'', repeat(U&''\4e2d'', 100))', :'project'));

-- revoked for good; the first reason and time stay
SELECT regpilot.revoke_key(:'key_id', 'found in a log');
SELECT status FROM regpilot.key_overview WHERE key_id = :'key_id';
SELECT revoked_at FROM regpilot.api_key WHERE id = :'key_id' \gset
SELECT regpilot.revoke_key(:'key_id', 'again');
SELECT revoke_reason, revoked_at = :'revoked_at' AS same_time FROM regpilot.api_key WHERE id = :'key_id';
SELECT code, detail, hint FROM error_of(format('SELECT regpilot.enable_key(%L)', :'key_id'));
SELECT code, detail, hint FROM error_of(format('UPDATE regpilot.api_key SET revoked_at = NULL WHERE id = %L', :'key_id'));
SELECT code, detail, hint FROM error_of(format('UPDATE regpilot.api_key SET digest = sha256(''other'') WHERE id = %L', :'key_id'));
SELECT code FROM error_of(format('UPDATE regpilot.api_key SET name = ''renamed'' WHERE id = %L', :'key_id'));
SELECT status FROM regpilot.key_overview WHERE key_id = :'key_id';

-- the other states that a list shows
SELECT key_id AS old_id FROM regpilot.create_key(:'project', 'old', expires_at => now() + interval '1 day') \gset
UPDATE regpilot.api_key SET created_at = now() - interval '91 days', expires_at = now() - interval '1 second'
	WHERE id = :'old_id';
SELECT status, rotation_due, total_requests, failed_requests, error_rate, active_environments, last_used_at, requests_per_minute
FROM regpilot.key_overview WHERE key_id = :'old_id';

DELETE FROM regpilot.project WHERE id = :'project';
SELECT count(*) FROM regpilot.api_key;
