# Who may do what: every role against every object that the extension makes, as
# the catalogs have them. Each cell is asked of the server, and tried.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

# The expectation, which must name every object. S(elect), I(nsert), U(pdate),
# D(elete), T(runcate) of relations; U(sage) and C(reate) of the schema; S, U(sage),
# W, setval, of sequences; U(sage) of types; X, execute, of functions; - is nothing.
# Columns are those of tables of which columns are granted. "member" is a reader with
# one membership, "nobody" has what everyone has. Partitions are nobody's.
my $expectation = <<~'END';
	                             admin  responder  reader  member  nobody
	schema regpilot              U      U          U       U       -

	table plan                   SIUD   -          S       S       -
	table project                SIUD   -          S       S       -
	table project_member         SIUD   -          S       S       -
	table api_key                IUD    -          -       -       -
	column api_key.digest        -      -          -       -       -
	column api_key.*             S      -          S       S       -
	table key_usage              S      -          S       S       -
	table usage_history          S      -          S       S       -
	table usage_journal          -      -          -       -       -
	table upstream               SIUD   S          S       S       -
	table route                  SIUD   S          S       S       -
	table audit_log              S      -          S       S       -
	table request_log            S      -          S       S       -
	table request_rollup         S      -          S       S       -
	table request_rollup_progress S     -          S       S       -
	view key_overview            S      -          S       S       -
	view project_overview        S      -          S       S       -
	view usage_hourly            S      -          S       S       -
	sequence route_id_seq        -      -          -       -       -
	sequence audit_log_id_seq    -      -          -       -       -
	sequence request_log_id_seq  -      -          -       -       -

	type secret                  -      -          -       -       -
	type verdict                 U      U          U       U       -
	type authorization           U      U          U       U       -

	function create_project      X      -          -       -       -
	function create_key          X      -          -       -       -
	function import_key          X      -          -       -       -
	function rotate_key          X      -          -       -       -
	function revoke_key          X      -          -       -       -
	function disable_key         X      -          -       -       -
	function enable_key          X      -          -       -       -
	function review_key          X      -          -       -       -
	function flag_stale_keys     X      -          -       -       -
	function key_checksum_ok     X      -          X       X       -
	function authorize           X      X          -       -       -
	function authorize_many      X      X          -       -       -
	function record_many         X      X          -       -       -
	function flush_usage         X      -          -       -       -
	function shared_memory_status X     -          X       X       -
	function my_projects         X      -          X       X       -
	function maintain_request_log -     -          -       -       -
	function roll_up_request_log -      -          -       -       -
	function roll_up             -      -          -       -       -
	function forget_rollup       -      -          -       -       -
	function trim_rollup         -      -          -       -       -
	function log_page            X      -          X       X       -
	function analytics           X      -          X       X       -
	function audit_page          X      -          X       X       -
	function key_page            X      -          X       X       -
	function key_log             -      X          -       -       -
	function key_analytics       -      X          -       -       -
	function check_filter        X      -          X       X       -
	function filter_value        X      -          X       X       -
	function filter_time         X      -          X       X       -
	function histogram           X      -          X       X       -
	function histogram_sum       X      -          X       X       -
	function histogram_quantile  X      -          X       X       -
	function histogram_add       X      -          -       -       -
	function histogram_count     X      -          -       -       -
	function histogram_merge     X      -          -       -       -
	function histogram_final     X      -          -       -       -
	function restoring           X      -          -       -       -
	function secret_in           X      -          -       -       -
	function secret_out          X      -          -       -       -
	function secret_recv         X      -          -       -       -
	function secret_send         X      -          -       -       -
	function secret_digest       X      -          -       -       -

	function audit               -      -          -       -       -
	function invalidate_limits   -      -          -       -       -
	function notify_key          -      -          -       -       -
	function notify_routes       -      -          -       -       -
	function refuse_to_rewrite   -      -          -       -       -
	function refuse_to_unrevoke  -      -          -       -       -
	function trust_dump          -      -          -       -       -
	END

my ($head, @lines) = grep { /\S/ } split /\n/, $expectation;
my @roles = split ' ', $head;
my %expected;    # object -> role -> letters
foreach (@lines)
{
	my ($kind, $name, @cells) = split ' ';
	@{ $expected{"$kind $name"} }{@roles} = @cells;
}

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
$site->create_key;
$site->create_key(plan => 'free');

$site->sql(<<~'SQL');
	CREATE ROLE admin LOGIN IN ROLE regpilot_admin;
	CREATE ROLE responder LOGIN IN ROLE regpilot_responder;
	CREATE ROLE reader LOGIN IN ROLE regpilot_reader;
	CREATE ROLE member LOGIN IN ROLE regpilot_reader;
	CREATE ROLE nobody LOGIN;
	INSERT INTO regpilot.project_member SELECT id, 'member' FROM regpilot.project WHERE plan = 'free';

	-- What a cell comes to: one row for each object and each letter of its kind,
	-- with the statement that needs the privilege, if it can be tried, and the
	-- question, with $1 for the role. A statement changes nothing even where it succeeds.
	CREATE TABLE cell (object text, letter text, statement text, question text);
	GRANT SELECT ON cell TO PUBLIC;

	INSERT INTO cell
	SELECT 'schema ' || nspname, letter, statement, format('has_schema_privilege($1, %s, %L)', oid, privilege)
	FROM pg_namespace, (VALUES
			('U', 'USAGE', 'SELECT ''regpilot.plan''::regclass'),
			('C', 'CREATE', 'CREATE TABLE regpilot.mine ()')) v(letter, privilege, statement)
	WHERE nspname = 'regpilot';

	INSERT INTO cell
	SELECT kind || ' ' || relname, letter, format(statement, oid::regclass, attname),
		format('has_table_privilege($1, %s, %L)', oid, privilege)
	FROM (SELECT oid, relname, relnamespace,
				CASE WHEN relkind = 'v' THEN 'view' WHEN relispartition THEN 'partition' ELSE 'table' END AS kind
			FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')) c,
		LATERAL (SELECT attname FROM pg_attribute
			WHERE attrelid = oid AND attnum > 0 AND attidentity = '' ORDER BY attnum LIMIT 1) a,
		(VALUES
			('S', 'SELECT', 'SELECT * FROM %1$s'),
			('I', 'INSERT', 'INSERT INTO %1$s (%2$I) SELECT NULL WHERE false'),
			('U', 'UPDATE', 'UPDATE %1$s SET %2$I = NULL WHERE false'),
			('D', 'DELETE', 'DELETE FROM %1$s WHERE false'),
			('T', 'TRUNCATE', 'TRUNCATE %1$s CASCADE')) v(letter, privilege, statement)
	WHERE relnamespace = 'regpilot'::regnamespace AND NOT (kind = 'view' AND letter <> 'S');

	INSERT INTO cell
	SELECT format('column %s.%s', relname, attname), 'S', format('SELECT %I FROM %s', attname, c.oid::regclass),
		format('has_column_privilege($1, %s, %L, ''SELECT'')', c.oid, attname)
	FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
	WHERE relnamespace = 'regpilot'::regnamespace AND relkind IN ('r', 'p', 'v') AND attnum > 0 AND NOT attisdropped
		AND EXISTS (SELECT FROM pg_attribute g WHERE g.attrelid = c.oid AND g.attacl IS NOT NULL);

	INSERT INTO cell
	SELECT 'sequence ' || relname, letter, format(statement, oid::regclass),
		format('has_sequence_privilege($1, %s, %L)', oid, privilege)
	FROM pg_class, (VALUES
			('S', 'SELECT', 'SELECT last_value FROM %s'),
			('U', 'USAGE', 'SELECT nextval(%L)'),
			('W', 'UPDATE', 'SELECT setval(%L, 1)')) v(letter, privilege, statement)
	WHERE relnamespace = 'regpilot'::regnamespace AND relkind = 'S';

	-- not the row types and arrays that come with tables and types
	INSERT INTO cell
	SELECT 'type ' || typname, 'U', format('CREATE TEMP TABLE mine (x %s)', oid::regtype),
		format('has_type_privilege($1, %s, ''USAGE'')', oid)
	FROM pg_type t
	WHERE typnamespace = 'regpilot'::regnamespace AND typcategory <> 'A'
		AND NOT EXISTS (SELECT FROM pg_class WHERE oid = typrelid AND relkind <> 'c');

	-- With arguments that are null, but not known to be when planned: a STRICT function would not even be
	-- called. No statement has an "internal" one.
	INSERT INTO cell
	SELECT 'function ' || proname, 'X',
		CASE WHEN 'internal'::regtype <> ALL (proargtypes) THEN
			format('SELECT regpilot.%I(%s) FROM generate_series(1, 1) g', proname,
				(SELECT string_agg(CASE WHEN type = 'cstring'::regtype THEN '''x'''
						ELSE format('nullif(g, 1)::text::%s', type::regtype) END, ', ' ORDER BY n)
					FROM unnest(proargtypes) WITH ORDINALITY a(type, n)))
		END,
		format('has_function_privilege($1, %s, ''EXECUTE'')', oid)
	FROM pg_proc WHERE pronamespace = 'regpilot'::regnamespace;

	-- Undone in any case. yes: it succeeded, or failed for another reason than a lack of privileges.
	CREATE FUNCTION try(statement text) RETURNS text STRICT LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE statement;
		RAISE SQLSTATE 'TRIED';
	EXCEPTION
		WHEN insufficient_privilege THEN RETURN 'no';
		WHEN SQLSTATE 'TRIED' THEN RETURN 'yes';
		WHEN OTHERS THEN RETURN SQLSTATE;
	END
	$$;
	CREATE FUNCTION ask(role name, question text) RETURNS bool LANGUAGE plpgsql AS $$
	DECLARE
		answer bool;
	BEGIN
		EXECUTE 'SELECT ' || question INTO STRICT answer USING role;
		RETURN answer;
	END
	$$;
	SQL

sub sql_as
{
	my ($role, $query) = @_;
	return $node->safe_psql('regpilot', $query, extra_params => [ '-U', $role ]);
}

# The expected letters: of an object that has a line of its own, or whose columns
# have; undef if nobody thought of it.
sub expected
{
	my ($object, $role) = @_;
	return '-' if $object =~ /^partition /;
	my $line = $expected{$object} // $expected{ $object =~ s/\..*/.*/r };
	return $line ? $line->{$role} : undef;
}

my %seen;
foreach my $role (@roles)
{
	my (%asked, %tried, @untried);
	my $may_use = $site->sql("SELECT has_schema_privilege('$role', 'regpilot', 'USAGE')") eq 't';
	foreach (split /\n/, $site->sql(qq{SELECT object, letter, ask('$role', question) FROM cell}))
	{
		my ($object, $letter, $answer) = split /\|/;
		$asked{$object}{$letter} = $answer eq 't' && $may_use;
		$seen{$object} = 1;
	}
	foreach (split /\n/, sql_as($role, 'SELECT object, letter, try(statement) FROM cell'))
	{
		my ($object, $letter, $result) = split /\|/;
		# a function is called without regard for what it does with nulls
		$result = 'yes' if $object =~ /^function/ && $result ne 'no' && $result ne '';
		$tried{$object}{$letter} = $result;
	}
	foreach my $object (sort keys %asked)
	{
		my $expected = expected($object, $role) // '(not in the matrix)';
		my $render = sub {
			my ($cells, $yes) = @_;
			return join('', grep { $yes->($cells->{$_}) } qw(S I U D T C W X)) || '-';
		};
		is($render->($asked{$object}, sub { $_[0] }), $expected, "$role: $object, asked");

		my @odd = grep { !/^(yes|no|)$/ } values %{ $tried{$object} };
		is("@odd", '', "$role: $object, tried: no other error");
		next if grep { $_ eq '' } values %{ $tried{$object} };
		is($render->($tried{$object}, sub { ($_[0] // '') eq 'yes' }), $expected, "$role: $object, tried");
	}
}
foreach my $object (sort keys %expected)
{
	(my $pattern = quotemeta $object) =~ s/\\\*$/\\w+/;
	ok(scalar(grep { /^$pattern$/ } keys %seen), "$object is there");
}

# --- what no role may, whatever it may do with rows

my @tables = split /\n/, $site->sql(q{SELECT oid::regclass FROM pg_class
	WHERE relnamespace = 'regpilot'::regnamespace AND relkind IN ('r', 'p')});
my @never = map {
	(
		"ALTER TABLE $_ DISABLE TRIGGER ALL",
		"ALTER TABLE $_ DISABLE TRIGGER USER",
		"ALTER TABLE $_ DISABLE ROW LEVEL SECURITY",
		"CREATE POLICY mine ON $_ USING (true)",
		"CREATE TRIGGER mine BEFORE INSERT ON $_ FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		"CREATE RULE mine AS ON INSERT TO $_ DO INSTEAD NOTHING",
		"DROP TABLE $_ CASCADE",
		"COPY $_ TO PROGRAM 'true'",
	)
} @tables;
push @never, map { "DROP TRIGGER $_ CASCADE" } split /\n/, $site->sql(q{SELECT format('%I ON %s', tgname, tgrelid::regclass)
	FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'regpilot'::regnamespace AND NOT tgisinternal});
push @never, map { "DROP POLICY $_" } split /\n/,
  $site->sql(q{SELECT format('%I ON %I.%I', policyname, schemaname, tablename) FROM pg_policies WHERE schemaname = 'regpilot'});
push @never, 'DROP EXTENSION regpilot CASCADE', 'DROP SCHEMA regpilot CASCADE', 'SET session_replication_role = replica',
  'CREATE FUNCTION regpilot.mine() RETURNS int LANGUAGE sql RETURN 1',
  'CREATE OR REPLACE FUNCTION regpilot.restoring() RETURNS bool LANGUAGE sql RETURN true',
  'GRANT regpilot_admin TO nobody', 'ALTER ROLE regpilot_reader SUPERUSER', q{SELECT pg_read_file('postgresql.conf')};
cmp_ok(@never, '>', 50, 'there is much that nobody may');
foreach my $role (@roles)
{
	my $values = join ', ', map { "(\$s\$$_\$s\$)" } @never;
	is(sql_as($role, "SELECT s FROM (VALUES $values) v(s) WHERE try(s) <> 'no'"), '', "$role: may do none of it");
}
is($site->sql(q{
	SELECT relname, privilege_type, is_grantable FROM pg_class, aclexplode(relacl)
	WHERE relnamespace = 'regpilot'::regnamespace AND grantee <> relowner
		AND (is_grantable OR privilege_type NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))}),
	'', 'no privilege can be passed on, and none is granted but on rows');

# --- rows: what belongs to a project or a key is isolated, and seen by admins and members

is($site->sql(q{
	SELECT relname FROM pg_class c
	WHERE relnamespace = 'regpilot'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
		AND (relname = 'project' OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname IN ('project_id', 'key_id')))
		AND (NOT relrowsecurity OR 2 <> (SELECT count(*) FROM pg_policy
				WHERE polrelid = c.oid AND polname IN ('admins_all', 'members_read')))}),
	'', 'tables of projects and keys have their policies');
foreach my $relation (qw(project project_member api_key key_overview project_overview))
{
	my $query = "SELECT count(*) FROM regpilot.$relation";
	my $all = $site->sql($query);
	is(join(' ', map { sql_as($_, $query) } qw(admin member reader)), "$all 1 0", "rows of $relation");
}

done_testing();
