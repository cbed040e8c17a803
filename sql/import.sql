--
-- Keys issued elsewhere, taken over by their digest.
--
SELECT regpilot.create_project('import test', 'enterprise') AS project \gset
SELECT regpilot.create_project('other import test', 'enterprise') AS project2 \gset

-- no more than the digest is needed, and the key opens
SELECT regpilot.import_key(:'project', 'legacy', sha256('legacy-key')) AS key_id \gset
SELECT verdict, key_id = :'key_id' AS key_id, name, hint, environment, permissions, requests_per_minute
FROM regpilot.authorize('legacy-key');
SELECT status, expires_at, rotated_from FROM regpilot.key_overview WHERE key_id = :'key_id';
SELECT regpilot.key_checksum_ok('legacy-key');

-- with all that a key of our own can have, and a hint
SELECT regpilot.import_key(:'project', 'legacy 2', sha256('legacy-key-2'), 'prod', '{logs:read,gateway:write}',
	'2099-01-01 00:00+00', 7, 'lgc_...ey-2') AS id2 \gset
SELECT name, environment, permissions, expires_at = '2099-01-01 00:00+00' AS expires_at, requests_per_minute, hint
FROM regpilot.key_overview WHERE key_id = :'id2';
SELECT verdict, hint, remaining FROM regpilot.authorize('legacy-key-2');
SELECT verdict FROM regpilot.authorize('legacy-key-2', 'gateway:read');

-- it lives as any other
SELECT regpilot.disable_key(:'id2');
SELECT verdict FROM regpilot.authorize('legacy-key-2');
SELECT regpilot.enable_key(:'id2');
SELECT regpilot.revoke_key(:'key_id');
SELECT verdict FROM regpilot.authorize('legacy-key');

-- a digest is there once, whatever the project and the state; the message does not show it
SELECT regpilot.import_key(:'project', 'again', sha256('legacy-key'));
SELECT regpilot.import_key(:'project2', 'again', sha256('legacy-key-2'));
SELECT key FROM regpilot.create_key(:'project', 'own') \gset
SELECT regpilot.import_key(:'project2', 'again', sha256(:'key'::bytea));
SELECT code FROM error_of(format('SELECT regpilot.import_key(%L, ''again'', sha256(''legacy-key''))', :'project'));

-- what is not accepted
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', NULL)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', '''')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', substr(sha256(''a key''), 2))', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key'') || ''x'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', encode(sha256(''a key''), ''hex'')::bytea)', :'project'));
SELECT * FROM error_of('SELECT regpilot.import_key(NULL, ''k'', sha256(''a key''))');
SELECT * FROM error_of('SELECT regpilot.import_key(''00000000-0000-0000-0000-000000000000'', ''k'', sha256(''a key''))');
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, NULL, sha256(''a key''))', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, repeat(''x'', 201), sha256(''a key''))', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), ''test'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), permissions => ''{keys:admin}'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), expires_at => ''2000-01-01 00:00+00'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), requests_per_minute => 0)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), hint => NULL)', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), hint => '''')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), hint => repeat(''x'', 65))', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''a key''), hint => E''two\nlines'')', :'project'));

-- nor is the key itself where anyone can read it
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''legacy-key-3''), hint => ''legacy-key-3'')', :'project'));
SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''legacy-key-3'', sha256(''legacy-key-3''))', :'project'));

SELECT * FROM error_of(format('SELECT regpilot.import_key(%L, ''k'', sha256(''''))', :'project'));

-- and nothing was changed by it
SELECT name FROM regpilot.api_key ORDER BY name;
SELECT verdict FROM regpilot.authorize('a key');

-- function and table agree on what a hint may hold
SELECT code FROM error_of('UPDATE regpilot.api_key SET hint = repeat(''x'', 65)');
SELECT code FROM error_of('UPDATE regpilot.api_key SET hint = E''two\nlines''');
SELECT count(regpilot.import_key(:'project', 'k', sha256('a key'), hint => U&'na\00efve \0085 \4e2d\6587 ' || repeat(U&'\4e2d', 52)));

-- an admin, who may not read digests, can import them, and is told of one that is there
SET ROLE regpilot_admin;
SELECT count(regpilot.import_key(:'project', 'admin''s', sha256('legacy-key-4')));
SELECT regpilot.import_key(:'project2', 'again', sha256('legacy-key-4'));
RESET ROLE;
SELECT verdict FROM regpilot.authorize('legacy-key-4');

DELETE FROM regpilot.project;
