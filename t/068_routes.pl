# Changes of routes, upstreams and secrets are taken up by a responder that runs,
# whether it is idle or busy, and harm no request.

use strict;
use warnings;
use lib 't/lib';
use IPC::Run ();
use PostgreSQL::Test::Utils qw(append_to_file);
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(
	env => sub {
		my ($site) = @_;
		mkdir "$site->{dir}/secrets";
		append_to_file("$site->{dir}/secrets/FILE_SECRET", "first-secret\n");
		return { REGPILOT_SECRETS_DIR => "$site->{dir}/secrets" };
	});
my ($key_id, $key) = $site->create_key;
my $upstream = $site->start_upstream;
my $whole = JSON::PP::false;

# The model that answers an alias, or the status.
sub who
{
	my ($alias) = @_;
	my $answer = $site->curl('/api/ai/chat', '--header', "X-API-Key: $key",
		'--json', JSON::PP::encode_json(user_message(model => $alias, stream => $whole)));
	return $answer->{headers}{'x-regpilot-model'} // $answer->{status};
}

# Waits until the alias leads there.
sub leads_to
{
	my ($alias, $model, $what) = @_;
	eval { wait_until($what, sub { who($alias) eq $model }, 10) };
	is(who($alias), $model, $what);
	return;
}

$site->add_upstream('plain', $upstream);
$site->add_routes([ 'flip', 'builtin', 'a' ], [ 'long', 'plain', 'long-stream' ]);
is(who('flip'), 'builtin/a', 'the route as it is');

# --- while no request comes

# More notifications than fit between PostgreSQL and a responder that does not read them.
$site->sql(q{DO $$ BEGIN FOR i IN 1 .. 20000 LOOP PERFORM pg_notify('regpilot_routes', ''); COMMIT; END LOOP; END $$});
$site->sql(q{UPDATE regpilot.route SET model = 'b' WHERE alias = 'flip'});
leads_to('flip', 'builtin/b', 'a change after very many others while idle');
is($site->sql(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'}), 0, 'which hold up nobody any longer');

$site->sql(q{UPDATE regpilot.route SET model = 'c' WHERE alias = 'flip'});
$site->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'regpilot_gateway'});
leads_to('flip', 'builtin/c', 'a change while the connection is lost');

# --- under load

my $clients = fork // die "fork: $!";
if ($clients == 0)
{
	my $sum = $site->in_parallel(4, sub { my %sum; $sum{ who('flip') =~ m{^builtin/} ? 'answered' : 'failed' }++ foreach 1 .. 150; return \%sum });
	append_to_file("$site->{dir}/sum", JSON::PP::encode_json($sum) . "\n");
	POSIX::_exit(0);
}
foreach my $n (1 .. 15)
{
	$site->sql("UPDATE regpilot.route SET model = 'm$n' WHERE alias = 'flip'");
	leads_to('flip', "builtin/m$n", "a change under load, $n");
}
waitpid $clients, 0;
my ($sum) = json_file("$site->{dir}/sum");
is_deeply($sum, { answered => 600 }, 'and each request is answered');

# --- what is in use stays until it is no longer

my $stream = IPC::Run::start(
	[ 'curl', '--silent', '--no-buffer', '--header', "X-API-Key: $key", '--json',
		JSON::PP::encode_json(user_message(model => 'long')), $site->url . '/api/ai/chat' ],
	'<', \undef, '>', \my $out);
wait_until('the stream to begin', sub { $stream->pump_nb; $out =~ /word/ });
$site->sql(q{DELETE FROM regpilot.upstream WHERE name = 'plain'});
$site->sql(q{DELETE FROM regpilot.route WHERE alias = '*'});
leads_to('long', '404', 'an upstream that was removed takes its routes along');
$stream->finish;
is((events($out))[-1], '[DONE]', 'but its answers go on to their end');

# --- upstreams and their secrets

sub secret { return $site->last_request->{headers}{authorization} }

$site->sql(<<~SQL);
	BEGIN;
	INSERT INTO regpilot.upstream VALUES ('secretive', '$upstream', 'FILE_SECRET');
	INSERT INTO regpilot.route (alias, upstream, model) VALUES ('secretive', 'secretive', 'at-once');
	COMMIT;
	SQL
leads_to('secretive', 'secretive/at-once', 'a new upstream and its route');
is(secret(), 'Bearer first-secret', "the secret in its file");
append_to_file("$site->{dir}/secrets/new", "second-secret\n");
rename "$site->{dir}/secrets/new", "$site->{dir}/secrets/FILE_SECRET";
who('secretive');
is(secret(), 'Bearer second-secret', 'and the next one, once it is there');
unlink "$site->{dir}/secrets/FILE_SECRET";
is(who('secretive'), '502', 'none without its file');
append_to_file("$site->{dir}/secrets/OTHER_SECRET", "three");
$site->sql(q{UPDATE regpilot.upstream SET secret_name = 'OTHER_SECRET'});
leads_to('secretive', 'secretive/at-once', 'another secret, at once: the lack of the first was not held against it');
is(secret(), 'Bearer three', 'and that is what it gets: too short to be a secret, so its answers may say it');
$site->sql(q{UPDATE regpilot.upstream SET name = 'renamed' WHERE name = 'secretive'});
leads_to('secretive', 'renamed/at-once', 'a new name');
$site->sql(q{TRUNCATE regpilot.route});
leads_to('secretive', '404', 'no routes at all');

done_testing();
